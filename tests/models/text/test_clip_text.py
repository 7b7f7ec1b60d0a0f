from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import models.clip
from data.errors import UsageError
from models.clip_config import model_config
from models.text import create


@pytest.fixture
def small(goldens: Any) -> Any:
    """The golden `clip_small`: its architecture is told from the tensors."""
    meta = goldens.meta("clip_small")
    shapes = {name: shape for name, shape, _ in meta["keys"]}
    return create("clip", goldens.weights(shapes, meta["weights"]["gain"]))


@pytest.mark.slow
def test_the_full_text_side_gives_the_public_states(goldens: Any) -> None:
    name = "clip_vit_b32_full"
    net = models.clip._network("ViT-B-32-quickgelu", model_config("ViT-B-32-quickgelu"))
    state = goldens.weights({key: each.shape for key, each in net.state_dict().items()})
    meta, want = goldens.meta(name), goldens.outputs(name)
    for index, each in enumerate(create("clip", state).encode(meta["inputs"]["texts"])):
        assert len(each.tokens) == meta["valid_lengths"][index]
        hidden = want["last_hidden_state"][index, : len(each.tokens)]
        np.testing.assert_allclose(each.tokens, hidden, rtol=0, atol=1e-5)
        np.testing.assert_allclose(each.pooled, want["pooler_output"][index], rtol=0, atol=1e-5)


def test_token_states_and_pooled_vectors_equal_the_public_ones(small: Any, goldens: Any) -> None:
    meta, want = goldens.meta("clip_small"), goldens.outputs("clip_small")
    states = small.encode(meta["inputs"]["texts"])
    assert [len(each.tokens) for each in states] == meta["valid_lengths"]
    for index, each in enumerate(states):
        hidden = want["last_hidden_state"][index, : len(each.tokens)]
        np.testing.assert_allclose(each.tokens, hidden, rtol=0, atol=1e-5)
        np.testing.assert_allclose(each.pooled, want["pooler_output"][index], rtol=0, atol=1e-5)


def test_token_ids_and_lengths_are_those_of_the_public_tokenizer(goldens: Any) -> None:
    tokenizer = create("clip", preset="tiny")._tokenizer  # type: ignore[attr-defined]
    for query in goldens.meta("clip_tokenizer")["queries"]:
        want = query["open_clip_ids"] or query["ids"]
        got = [tokenizer.sot_token_id, *tokenizer.encode(query["text"]), tokenizer.eot_token_id]
        assert got == want
        if query["open_clip_same"]:  # where not, the text spells out a marker
            assert len(got) == query["length_by_argmax"]


def test_a_text_beyond_the_context_is_cut_and_says_so() -> None:
    encoder = create("clip", preset="tiny")
    fits, cut = encoder.encode(["word " * 75, "word " * 76])
    assert (len(fits.tokens), fits.truncated) == (77, False)
    assert (len(cut.tokens), cut.truncated) == (77, True)
    caption = "A red dog runs. " * 30
    assert not encoder.caption_vector(caption).truncated  # sentence by sentence it fits
    assert encoder.caption_vector("A dog. " + "word " * 76).truncated


def test_words_stay_recognisable_in_the_states_of_the_random_default() -> None:
    encoder = create("clip", preset="tiny")
    colours = ("red", "green", "blue", "yellow", "pink")
    shapes = ("circle", "square", "star")
    texts = [f"{a} {b} moves" for a, b in itertools.product(colours, shapes)]
    states = encoder.encode(texts)
    for position, words in ((1, colours), (2, shapes)):
        label = np.array([words.index(text.split()[position - 1]) for text in texts])
        vectors = np.stack([each.tokens[position] for each in states])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        similar = vectors @ vectors.T
        np.fill_diagonal(similar, -1)
        assert (label[similar.argmax(axis=1)] == label).all()


def small_network(**text: Any) -> Any:
    import open_clip

    config = {"width": 64, "heads": 1, "layers": 2, "context_length": 12, "vocab_size": 49408}
    vision = {"width": 64, "layers": 1, "patch_size": 16, "image_size": 32}
    return open_clip.model.CustomTextCLIP(
        embed_dim=32, vision_cfg=vision, text_cfg=config | text
    ).eval(), {"embed_dim": 32, "vision_cfg": vision, "text_cfg": config | text}


def saved(folder: Path, **text: Any) -> tuple[Any, Path]:
    net, config = small_network(**text)
    told = {"model_cfg": config | {"custom_text": True}}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    save_file(net.state_dict(), folder / "open_clip_model.safetensors")
    return net, folder


@pytest.mark.parametrize("text", [{}, {"no_causal_mask": True}], ids=["causal", "sees everything"])
def test_a_text_tower_of_its_own_gives_what_open_clip_gives(
    tmp_path: Path, text: dict[str, Any]
) -> None:
    net, folder = saved(tmp_path, **text)
    import open_clip

    texts = ["a dog runs", "two people -- a boy & a girl -- play ping-pong in the park today"]
    ids = open_clip.tokenizer.SimpleTokenizer(context_length=12)(texts)
    with torch.no_grad():
        want = net.encode_text(ids).numpy()
    encoder = create("clip", folder)
    assert (encoder.dim, encoder.pooled_dim) == (64, 32)
    states = encoder.encode(texts)
    np.testing.assert_allclose(np.stack([each.pooled for each in states]), want, atol=1e-5)
    assert [len(each.tokens) for each in states] == [5, 12]
    assert [each.truncated for each in states] == [False, True]
    np.testing.assert_allclose(encoder.encode(texts[:1])[0].tokens, states[0].tokens, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"embed_cls": True}, r"carry a class token \(CoCa\)"),
        ({"pool_type": "last"}, "pooled vector is the 'last' token"),
        ({"vocab_size": 32000}, "a vocabulary of 32,000 tokens"),
        ({"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}, "needs the tokenizer 'timm/ViT-B-16-Sig"),
    ],
)
def test_a_text_side_of_another_kind_is_refused_with_its_reason(
    tmp_path: Path, text: dict[str, Any], message: str
) -> None:
    _, folder = saved(tmp_path, **text)
    with pytest.raises(UsageError, match=message):
        create("clip", folder)


def test_a_text_side_of_hugging_face_is_refused_without_asking_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="open_clip cannot build CLIP 'roberta-ViT-B-32' here"):
        create("clip", model="roberta-ViT-B-32")


def test_the_public_code_keeps_thirty_tokens_of_a_long_text_and_ours_the_whole_context() -> None:
    # moment_detr run_on_video/clip/clip.py, golden README: 30 tokens and two markers
    (states,) = create("clip", preset="tiny").encode([" ".join(["running"] * 90)])
    assert (len(states.tokens), states.truncated) == (77, True)


def test_pictures_and_texts_come_from_the_same_network() -> None:
    from models.backbones import create as backbone

    text = create("clip", preset="tiny", calibrated=False)
    picture = backbone("clip", preset="tiny", calibrated=False)
    assert text.weights.sha256 == picture.weights.sha256
