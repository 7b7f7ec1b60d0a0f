from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import models.clip
from data.errors import UsageError
from models.text import create


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, goldens: Any) -> Any:
    """The golden `clip_small`: dimensions and weights."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}
    vision = {"image_size": 64, "layers": 3, "width": 128, "patch_size": 16}
    dims = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setattr(models.clip, "_TINY", dims)
    meta = goldens.meta("clip_small")
    shapes = {name: shape for name, shape, _ in meta["keys"]}
    return create("clip", goldens.weights(shapes, meta["weights"]["gain"]), model="tiny")


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


def test_a_model_whose_text_side_is_of_another_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import open_clip

    tiny = open_clip.model.CLIP(**models.clip._TINY)
    tiny.register_buffer("attn_mask", None, persistent=False)
    monkeypatch.setattr(models.clip, "_network", lambda _: tiny)
    with pytest.raises(UsageError, match="no causal text transformer"):
        create("clip", preset="tiny")


def test_pictures_and_texts_come_from_the_same_network() -> None:
    from models.backbones import create as backbone

    text = create("clip", preset="tiny", calibrated=False)
    picture = backbone("clip", preset="tiny", calibrated=False)
    assert text.weights.sha256 == picture.weights.sha256
