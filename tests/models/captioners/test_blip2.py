"""Captioner `blip2` against transformers' own BLIP-2 on a tiny random model with OPT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from data.errors import UsageError
from data.video.fits import fit_picture
from data.video.types import View
from models.captioners import CaptionRequest, create
from models.captioners.blip2 import Blip2Captioner
from models.captioners.generating import Decoding
from models.captioners.looped import PICTURE_ID
from tests.models.captioners.tiny_vlms import tokenizer

SIDE, TOKENS = 28, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Salesforce/blip2-opt-* has it, tiny."""
    import transformers as hf

    where = tmp_path_factory.mktemp("blip2")
    words = tokenizer("<image>")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = hf.Blip2Config(
        vision_config={**small, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 14},
        qformer_config={**small, "num_hidden_layers": 2, "vocab_size": 8},
        text_config={
            "model_type": "opt",
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": len(words),
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        num_query_tokens=5,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    net = hf.Blip2ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
    net.save_pretrained(where)
    words.save_pretrained(where)
    size = {"height": SIDE, "width": SIDE}
    hf.BlipImageProcessorPil(size=size, image_std=[0.2, 0.3, 0.4]).save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Blip2Captioner:
    return build(folder)


def build(folder: Path | None, **options: Any) -> Blip2Captioner:
    made = create("blip2", folder, **{"retries": 0, "max_new_tokens": TOKENS, **options})
    assert isinstance(made, Blip2Captioner)
    return made


def frame(seed: int, height: int = 60, width: int = 90) -> NDArray[np.uint8]:
    """A picture with large patches, so that resizing leaves something to see."""
    few = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return few.repeat(height // 4, 0).repeat(width // 6, 1)


def seen(seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    """As the decoder's child makes it for this captioner."""
    return np.array(fit_picture(frame(seed), View(side, False, "exact", "stretched")))


def request(seed: int, side: int = SIDE) -> CaptionRequest:
    return CaptionRequest(seen(seed, side)[None], "", float(seed), f"v:{seed}")


def ids_of(captioner: Blip2Captioner, seeds: list[int], **decoding: Any) -> list[tuple[int, ...]]:
    prompts = captioner.embed([request(each) for each in seeds])
    settings = Decoding(**{"max_new_tokens": TOKENS, **decoding})
    keys = [f"v:{each}" for each in seeds]
    return [each.ids for each in captioner._engine.generate(prompts, keys, settings)]


def test_pixels_and_tokens_are_those_of_transformers(
    captioner: Blip2Captioner, folder: Path
) -> None:
    import transformers as hf
    from PIL import Image

    eyes = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    net = hf.Blip2ForConditionalGeneration.from_pretrained(folder)
    found = ids_of(captioner, [0, 1, 2, 3])
    for seed, ids in enumerate(found):
        pixels = eyes(Image.fromarray(frame(seed)), return_tensors="pt").pixel_values
        out = net.generate(pixels, max_new_tokens=TOKENS, do_sample=False)
        new = out[0].tolist()[-TOKENS:] if out.shape[1] > TOKENS else out[0].tolist()
        assert [each for each in new if each != 2] == list(ids)
    assert len(set(found)) > 2  # the text follows the picture


def test_what_the_language_model_reads_is_what_transformers_makes(
    captioner: Blip2Captioner, folder: Path
) -> None:
    import transformers as hf
    from PIL import Image

    eyes = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    net = hf.Blip2ForConditionalGeneration.from_pretrained(folder)
    pixels = eyes(Image.fromarray(frame(5)), return_tensors="pt").pixel_values
    with torch.no_grad():
        soft = net.get_image_features(pixels).pooler_output
    (ours,) = captioner.embed([request(5)])
    assert ours.shape == (5 + 1, 32)
    assert torch.allclose(ours[:5], soft[0], atol=1e-5)
    begin = net.get_input_embeddings().weight[1]
    assert torch.equal(ours[5], begin)
    assert captioner.prompt_ids(request(5)) == (PICTURE_ID, 1)


def test_a_batch_equals_single_pictures_also_when_sampled(captioner: Blip2Captioner) -> None:
    seeds = [*range(7)]
    for settings in ({}, {"temperature": 1.0, "top_p": 0.9, "seed": 5}):
        whole = ids_of(captioner, seeds, **settings)
        assert whole == [ids_of(captioner, [each], **settings)[0] for each in seeds]


def test_a_prefix_is_read_and_is_no_part_of_the_caption(folder: Path) -> None:
    plain, begun = build(folder), build(folder, prefix="a man")
    first, second = (each.caption([request(1)])[0] for each in (plain, begun))
    words = begun.tokens.encode("a man")
    assert second.prompt_tokens == first.prompt_tokens + len(words) == 6 + len(words)
    assert ids_of(plain, [1]) != ids_of(begun, [1])
    assert Blip2Captioner.recipe({"prefix": "a man"})["prefix"] == "a man"


def test_a_caption_ends_with_its_line(folder: Path) -> None:
    """LAVIS `Blip2OPT`: `eos_token_id` is the token of a line's end."""
    captioner = build(folder)
    assert captioner.tokens.encode("\n")[0] in captioner._engine._eos
    assert {2} < captioner._engine._eos


def test_pictures_are_squares_of_the_whole_frame(captioner: Blip2Captioner) -> None:
    assert (captioner.sight.frames, captioner.sight.side) == (1, SIDE)
    assert captioner.sight.fit == "stretched"
    with pytest.raises(ValueError, match="sees one uint8 picture of 28 x 28"):
        captioner.caption([request(0, side=30)])


def test_without_checkpoint_it_is_tiny_and_the_same_from_the_same_seed() -> None:
    first, again, other = (build(None, seed=seed) for seed in (1, 1, 2))
    side = first.sight.side
    asked = [request(i, side) for i in range(3)]
    texts = [[one.raw or one.text for one in each.caption(asked)] for each in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert first.params()["weights"] == "random"


def test_in_bfloat16_the_q_former_stays_in_float32(folder: Path) -> None:
    captioner = build(folder, dtype="bfloat16")
    net = captioner.net
    assert net.query_tokens.dtype == torch.float32
    assert {each.dtype for each in net.qformer.parameters()} == {torch.float32}
    assert net.vision_model.embeddings.patch_embedding.weight.dtype == torch.bfloat16
    exact, rough = (each.embed([request(0)])[0] for each in (build(folder), captioner))
    assert torch.nn.functional.cosine_similarity(
        exact.flatten(), rough.float().flatten(), dim=0
    ) == pytest.approx(1, abs=1e-2)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_a_missing_tensor_is_an_error_that_names_it(copied: Path) -> None:
    state = load_file(copied / "model.safetensors")
    del state["language_projection.weight"]
    save_file(state, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"missing 1 .*language_projection\.weight"):
        build(copied)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "qwen2_vl"}, "captioner blip2 reads kind 'blip-2' with opt"),
        (
            {"model_type": "blip-2", "text_config": {"model_type": "t5"}},
            "has an encoder and a decoder of text; captioner blip2",
        ),
        (
            {"model_type": "blip-2", "text_config": {"model_type": "llama"}},
            "is a model of kind 'blip-2' with llama",
        ),
    ],
)
def test_another_model_is_told_by_its_kind(
    tmp_path: Path, config: dict[str, Any], told: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError) as error:
        Blip2Captioner.check(tmp_path, {})
    assert told in str(error.value)


def test_colours_that_are_no_three_numbers_are_told(copied: Path) -> None:
    file = copied / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5, 0.5, 0.5]}))
    with pytest.raises(UsageError, match=r"image_mean is \[0\.5\], expected three numbers"):
        Blip2Captioner.check(copied, {})


def test_the_cost_is_that_of_the_published_sizes(tmp_path: Path) -> None:
    """blip2-opt-6.7b: OPT-6.7b has 6.7 billion weights, ViT-g 0.99; Li et al. §4, Zhang et al."""
    text = {
        "model_type": "opt",
        "hidden_size": 4096,
        "ffn_dim": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 50272,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip-2", "text_config": text}))
    work = Blip2Captioner.work(tmp_path, {"max_new_tokens": 20})
    assert work is not None
    assert work.weight_bytes == pytest.approx(2 * 6.65e9, rel=0.01)
    assert work.resident_bytes - work.weight_bytes == pytest.approx(2 * (0.98e9 + 0.21e9), rel=0.02)
    assert (work.prompt_tokens, work.new_tokens) == (33, 20)
    assert Blip2Captioner.work(None, {}) is None
