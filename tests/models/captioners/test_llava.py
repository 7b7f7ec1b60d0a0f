"""LLaVA against the public code (goldens of the original implementation) and against itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llava_folders as folders
import numpy as np
import pytest
import torch

from data.errors import UsageError
from data.video.fits import fit_picture
from data.video.types import View
from models.captioners import CAPTIONERS, CaptionRequest, create
from models.captioners.generating import Decoding
from models.captioners.limits import Work
from models.captioners.llava import Llava

META, GREEDY = "llava_tiny", Decoding(max_new_tokens=12)


@pytest.fixture(scope="module")
def meta(goldens: Any) -> dict[str, Any]:
    found: dict[str, Any] = goldens.meta(META)
    return found


@pytest.fixture(scope="module")
def state(goldens: Any, meta: dict[str, Any]) -> folders.State:
    made: folders.State = goldens.state(meta)
    return made


@pytest.fixture(scope="module")
def written(
    goldens: Any,
    meta: dict[str, Any],
    state: folders.State,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The same weights in every layout."""
    place = tmp_path_factory.mktemp("llava")
    tokenizer = goldens.folder / "llama_sp_tiny.model"
    tower = folders.write_tower(place / "clip", meta, state)
    return {
        "tower": tower,
        "liuhaotian": folders.write_own(place / "own", meta, state, tokenizer, tower),
        "liuhaotian without tower": folders.write_own(
            place / "bare", meta, state, tokenizer, tower, with_tower=False
        ),
        "llava-hf": folders.write_hf(place / "hf", meta, state, tokenizer),
        "llava-hf with more rows": folders.write_hf(
            place / "hf64", meta, state, tokenizer, extra_rows=64
        ),
    }


LAYOUTS = ("liuhaotian", "liuhaotian without tower", "llava-hf", "llava-hf with more rows")


@pytest.fixture(scope="module")
def built(written: dict[str, Path]) -> Callable[[str], Llava]:
    made: dict[str, Llava] = {}

    def build(layout: str) -> Llava:
        if layout not in made:
            made[layout] = Llava(written[layout], max_new_tokens=12, retries=0)
        return made[layout]

    return build


def request(goldens: Any, captioner: Llava, item: dict[str, Any]) -> CaptionRequest:
    """A golden's picture as the decoder's process makes it, and its question."""
    i, sight = item["image"], captioner.sight
    frame = goldens.rule.make_frames(i["name"], i["t"], i["h"], i["w"], i["c"], i["salt"])[0]
    view = View(sight.side, False, "exact", sight.fit, sight.background)
    return CaptionRequest(fit_picture(frame, view)[None], item["question"], 0.0, item["key"])


def embeds(captioner: Llava, asked: CaptionRequest) -> torch.Tensor:
    return captioner.embed([asked])[0][None]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_embeddings_logits_and_words_are_those_of_the_public_code(
    layout: str, goldens: Any, meta: dict[str, Any], built: Callable[[str], Llava]
) -> None:
    captioner, outputs = built(layout), goldens.outputs(META)
    rtol, atol = meta["suggested_tolerance"]["rtol"], meta["suggested_tolerance"]["atol"]
    for item in meta["items"]:
        asked = request(goldens, captioner, item)
        got = embeds(captioner, asked)
        assert got.shape[1] == item["n_embeddings"]
        key = item["key"]
        np.testing.assert_allclose(got, outputs[f"{key}/inputs_embeds"], rtol, atol)
        (logits,) = captioner.logits([asked])
        want = outputs[f"{key}/logits_last8"]
        np.testing.assert_allclose(logits[-8:, : want.shape[-1]], want, rtol, atol)
        (seen,) = captioner.features([asked])
        np.testing.assert_allclose(seen, outputs[f"{key}/image_features"][0], rtol, atol)
        assert captioner.prompt_ids(asked) == tuple(outputs[f"{key}/input_ids"][0].tolist())
        (one,) = captioner.write([asked], GREEDY)
        assert one.text == captioner.tokens.decode(item["greedy_ids"])
        assert (one.new_tokens, one.prompt_tokens) == (12, item["n_embeddings"])


def test_logits_of_all_layouts_are_identical(
    goldens: Any, meta: dict[str, Any], built: Callable[[str], Llava]
) -> None:
    vocab, all_logits = meta["dims"]["vocab"], []
    for layout in LAYOUTS:
        captioner = built(layout)
        asked = request(goldens, captioner, meta["items"][0])
        all_logits.append(captioner.logits([asked])[0][..., :vocab])
    assert all(torch.equal(all_logits[0], each) for each in all_logits[1:3])
    # A table with more rows is multiplied in other blocks: equal but for the last bit.
    torch.testing.assert_close(all_logits[0], all_logits[3], rtol=1e-5, atol=1e-5)


def test_ids_above_the_tokenizers_are_never_written(
    goldens: Any, meta: dict[str, Any], built: Callable[[str], Llava]
) -> None:
    """In a folder of llava-hf with rows for pictures that are likelier than every word."""
    captioner, vocab = built("llava-hf with more rows"), meta["dims"]["vocab"]
    asked = request(goldens, captioner, meta["items"][0])
    prompts = list(embeds(captioner, asked))
    (free,) = captioner._engine.generate(prompts, ["a"], GREEDY)
    assert free.ids[0] >= vocab
    (words,) = captioner._engine.generate(prompts, ["a"], GREEDY, allowed=vocab)
    assert words.ids == tuple(meta["items"][0]["greedy_ids"])


def test_a_batch_of_mixed_prompts_is_its_rows_one_by_one(
    goldens: Any, meta: dict[str, Any], built: Callable[[str], Llava]
) -> None:
    captioner = built("liuhaotian")
    one, two = (request(goldens, captioner, item) for item in meta["items"])
    mixed = [one, two, one, CaptionRequest(two.frames, one.prompt, 1.0, "c")]
    sampled = Decoding(max_new_tokens=8, temperature=0.7, top_p=0.9, seed=3)
    for decoding in (GREEDY, sampled):
        together = captioner.write(mixed, decoding)
        assert together == [captioner.write([each], decoding)[0] for each in mixed]
    assert together[0].text == together[2].text  # the same key draws the same numbers
    assert captioner.write([one], Decoding(max_new_tokens=8, temperature=0.7, seed=4)) != [
        together[0]
    ]


def test_pixels_are_those_of_the_public_image_processor(
    goldens: Any, built: Callable[[str], Llava]
) -> None:
    """`float32_sha256`: the very bits of process_images, from the decoder's picture on."""
    captioner, golden = built("liuhaotian"), goldens.meta("llava_image")
    outputs, full = goldens.outputs("llava_image"), goldens.outputs("llava_image_full")
    assert captioner.sight.background == tuple(golden["background_uint8"])
    for each in golden["images"]:
        i, name = each["image"], each["name"]
        frame = goldens.rule.make_frames(i["name"], i["t"], i["h"], i["w"], i["c"], i["salt"])[0]
        view = View(336, False, "exact", "padded", captioner.sight.background)
        pixels = captioner.pixels(fit_picture(frame, view)[None])[0].numpy()
        np.testing.assert_allclose(
            pixels.reshape(3, 56, 6, 56, 6).mean((2, 4)), outputs[f"{name}/block6_mean"], atol=1e-6
        )
        rows = [0, 1, 72, 73, 74, 168, 335]
        np.testing.assert_allclose(pixels[:, rows, ::4], outputs[f"{name}/rows"], atol=1e-6)
        np.testing.assert_allclose(pixels[:, ::4, rows], outputs[f"{name}/cols"], atol=1e-6)
        if f"{name}/pixel_values" in full:
            np.testing.assert_allclose(pixels, full[f"{name}/pixel_values"], atol=1e-6)


# --- folders that are not what they seem


def test_transformers_gives_a_random_model_for_the_original_layout_and_this_does_not(
    written: dict[str, Path], tmp_path: Path
) -> None:
    """specs/captioners.md §1.3 trap A: `model_type: llava` in liuhaotian's own config."""
    config = json.loads((written["liuhaotian"] / "config.json").read_text())
    assert config["model_type"] == "llava"
    # As a folder of llava-hf would be read: sizes of a 7B, names that do not exist.
    folder = tmp_path / "half"
    shutil.copytree(written["liuhaotian"], folder)
    stripped = {key: value for key, value in config.items() if not key.startswith("mm_")}
    (folder / "config.json").write_text(json.dumps(stripped))
    with pytest.raises(UsageError, match=r"is no LLaVA's: it has neither `vision_config`"):
        Llava(folder)
    (folder / "config.json").write_text(json.dumps({**stripped, "vision_config": {}}))
    with pytest.raises(UsageError, match=r"missing \d+ tensors.*unexpected .*would be random"):
        Llava(folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UsageError, match=r"missing 9 tensors: .*layers\.2"):
        Llava(folder)
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(UsageError, match=r"wrong shape of \d+ tensors"):
        Llava(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "linear"}, r"mm_projector_type is 'linear'"),
        ({"mm_projector_type": None}, r"mm_projector_type is None|LLaVA 1\.0"),
        ({"image_aspect_ratio": "anyres"}, r"'anyres'.*llava-hf/llava-v1\.6"),
        ({"mm_patch_merge_type": "spatial_unpad"}, r"captioner 'vlm'"),
        ({"mm_use_im_start_end": True}, r"mm_use_im_start_end is True"),
        ({"architectures": ["LlavaMptForCausalLM"]}, r"LlavaMptForCausalLM"),
        ({"quantization_config": {"load_in_4bit": True}}, r"is quantised"),
        ({"mm_vision_tower": "google/siglip"}, r"'google/siglip'.*option `vision`"),
        ({"hidden_size": "wide"}, r"hidden_size is 'wide', expected a number"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers is 1000000000, expected .* 1 to 1,024"),
        ({"vocab_size": 10**12}, r"vocab_size is 1000000000000, expected .* to 1,048,576"),
        ({"num_attention_heads": 5}, r"describes no model that can be built"),
    ],
)
def test_another_build_is_refused_by_name(
    change: dict[str, Any], message: str, written: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(written["liuhaotian"], folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        Llava(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava_next"}, r"model_type is 'llava_next'.*captioner 'vlm'"),
        ({"text_config": {"model_type": "mistral"}}, r"text_config\.model_type is 'mistral'"),
        ({"vision_config": {"model_type": "siglip"}}, r"vision_config\.model_type is 'siglip'"),
        ({"vision_feature_layer": [-2, -5]}, r"it takes layers \[-2, -5\]"),
    ],
)
def test_another_member_of_the_family_is_sent_to_vlm(
    change: dict[str, Any], message: str, written: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(written["llava-hf"], folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        Llava(folder)


def test_a_lora_a_folder_without_tokenizer_and_a_table_are_sentences(
    written: dict[str, Path], state: folders.State, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"it is a LoRA: merge it"):
        Llava(tmp_path)
    folder = tmp_path / "mute"
    shutil.copytree(written["llava-hf"], folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UsageError, match=r"has no tokenizer \(tokenizer\.json or tokenizer\.model"):
        Llava(folder)
    (folder / "tokenizer.model").write_bytes(b"not a tokenizer")
    with pytest.raises(UsageError, match=r"tokenizer\.model' cannot be read"):
        Llava(folder)
    with pytest.raises(UsageError, match=r"a table of tensors was given"):
        Llava(state)


def test_the_vision_tower_is_looked_for_where_the_option_says(
    goldens: Any,
    meta: dict[str, Any],
    state: folders.State,
    written: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(written["liuhaotian without tower"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["mm_vision_tower"] = "openai/clip-vit-large-patch14-336"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"holds no vision tower and names .*option `vision`"):
        Llava(folder)
    tower = folders.write_tower(tmp_path / "tower", meta, state, whole=False)
    captioner = Llava(folder, vision=str(tower), max_new_tokens=12)
    other = Llava(written["liuhaotian"], max_new_tokens=12)
    asked = request(goldens, captioner, meta["items"][0])
    assert torch.equal(embeds(captioner, asked), embeds(other, asked))
    # Its content is in the recipe, not its place.
    recipe = Llava.recipe({"vision": str(tower)})
    moved = tmp_path / "moved"
    shutil.copytree(tower, moved)
    assert Llava.recipe({"vision": str(moved)}) == recipe
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert Llava.recipe({"vision": str(moved)}) != recipe
    with pytest.raises(UsageError, match=r"is no folder of a CLIP"):
        Llava(folder, vision=str(written["llava-hf"] / "tokenizer.model"))


def test_what_a_config_says_of_positions_reaches_the_network(
    written: dict[str, Path], tmp_path: Path
) -> None:
    for layout, place in (("liuhaotian", ()), ("llava-hf", ("text_config",))):
        folder = tmp_path / layout
        shutil.copytree(written[layout], folder)
        config = json.loads((folder / "config.json").read_text())
        part = config[place[0]] if place else config
        part |= {
            "rope_theta": 5000.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "pad_token_id": -1,  # of old conversions of LLaMA; no row of a table
        }
        (folder / "config.json").write_text(json.dumps(config))
        told = Llava(folder).net.config.text_config.rope_parameters
        assert (told["rope_theta"], told["rope_type"], told["factor"]) == (5000.0, "linear", 2.0)


# --- options


def test_without_a_checkpoint_it_is_small_untrained_and_says_so() -> None:
    captioner = create("llava", seed=3, max_new_tokens=4, retries=0)
    assert isinstance(captioner, Llava)
    assert captioner.params()["weights"] == {
        "kind": "random",
        "source": "seed 3",
        "stored": "",
        "trained": False,
    }
    side = captioner.sight.side
    frames = np.arange(side * side * 3, dtype=np.int64).reshape(1, side, side, 3).astype(np.uint8)
    asked = CaptionRequest(frames, "What is seen?", 0.0, "a")
    (first,) = captioner.caption([asked])
    assert first.new_tokens == 4
    assert create("llava", seed=3, max_new_tokens=4, retries=0).caption([asked]) == [first]
    other = create("llava", seed=4, max_new_tokens=4, retries=0)
    assert other.caption([asked])[0].raw != first.raw or other.caption([asked]) != [first]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "13"}, r"unknown size '13'; did you mean '13b'"),
        ({"template": "vicuna"}, r"unknown template 'vicuna'; did you mean 'vicuna_v1'"),
        ({"template": "USER: {question}"}, r"holds <image> once"),
        ({"template": "{question} <image>"}, r"holds <image> once, and after it"),
        ({"picture": "square"}, r"unknown picture 'square'"),
        ({"dtype": "int8"}, r"option dtype is 'int8'; .*bfloat16"),
        ({"temperature": -1.0}, r"option 'temperature' is -1\.0; allowed"),
        ({"max_new_tokens": 0}, r"option 'max_new_tokens' is 0; allowed"),
        ({"vision": "somewhere"}, r"`vision` goes with a checkpoint"),
    ],
)
def test_an_option_that_is_not_allowed_says_what_is(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Llava(**options)
    with pytest.raises(UsageError, match=message):  # before anything is built
        Llava.check(None, options)


def test_size_is_for_random_weights(written: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"`size` is for random weights"):
        Llava(written["llava-hf"], size="7b")
    Llava.check(written["llava-hf"], {})


def test_the_picture_is_shown_as_the_model_was_trained(
    written: dict[str, Path], tmp_path: Path
) -> None:
    assert Llava(written["llava-hf"]).sight.fit == "padded"
    assert Llava(written["llava-hf"], picture="crop").sight.fit == "cropped"
    folder = tmp_path / "square"
    shutil.copytree(written["liuhaotian"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_aspect_ratio": "square"}))
    assert Llava(folder).sight.fit == "cropped"
    assert Llava(folder, picture="pad").sight.fit == "padded"


def test_recipes_hold_the_words_of_the_template_and_nothing_of_the_machine() -> None:
    plain = Llava.recipe({})
    assert plain["template"].startswith("A chat between a curious user")
    assert Llava.recipe({"template": "llava_v1"})["template"] != plain["template"]
    assert Llava.recipe({"template": plain["template"]}) == plain
    for name in Llava.machine_options:
        assert name not in plain
    assert {"temperature", "top_k", "retries", "guards", "picture"} <= plain.keys()


def test_a_prompt_that_holds_the_sign_of_a_picture_or_is_too_long_is_refused(
    built: Callable[[str], Llava],
) -> None:
    captioner = built("liuhaotian")
    frames = np.zeros((1, 56, 56, 3), np.uint8)
    with pytest.raises(UsageError, match=r"holds '<image>', the place of the picture"):
        captioner.caption([CaptionRequest(frames, "<image> what?", 0.0, "a")])
    with pytest.raises(UsageError, match=r"more than the model's 512; shorten the prompt"):
        captioner.caption([CaptionRequest(frames, "what " * 300, 0.0, "a")])
    with pytest.raises(ValueError, match=r"one uint8 picture of 56 x 56, got uint8 \(2, 56"):
        captioner.caption([CaptionRequest(np.zeros((2, 56, 56, 3), np.uint8), "what?", 0.0, "a")])


def test_the_cost_of_a_caption_is_that_of_the_papers_model() -> None:
    """specs/captioners.md §3.2: LLaVA-1.5-13B, 636 prompt tokens: 16.7 TFLOP, 0.819 MB a token."""
    work = Llava.work(None, {"size": "13b"})
    assert isinstance(work, Work)
    assert work.prompt_tokens == pytest.approx(636, abs=6)
    assert work.prompt_flops == pytest.approx(16.7e12, rel=0.02)
    assert work.kv_bytes == 819_200
    assert work.weight_bytes == pytest.approx(25.7e9, rel=0.01)
    assert work.resident_bytes == pytest.approx(26.7e9, rel=0.01)


def test_the_cost_is_read_from_config_json_alone(written: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "only"
    folder.mkdir()
    shutil.copy(written["llava-hf"] / "config.json", folder)
    assert Llava.work(folder, {}) == Llava.work(written["liuhaotian"], {})


def test_it_is_in_the_registry() -> None:
    assert CAPTIONERS.get("llava") is Llava
