"""Captioner `vllm`: all but vLLM itself, which is not installed where these run.

Another engine, a plain one, stands in its place: it looks at the pictures, dies and refuses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_vlms
from PIL import Image

from data.errors import UsageError
from models.captioners import CAPTIONERS, CaptionRequest
from models.captioners.generating import Decoding, Written
from models.captioners.vllm_captioner import VllmCaptioner
from models.captioners.vllm_engine import (
    Asked,
    Engine,
    EngineDiedError,
    RefusedError,
    _written,
)
from models.captioners.vllm_words import words_of
from models.captioners.vlm import Talk

LLAVA = {
    "model_type": "llava",
    "image_token_index": 640,
    "vision_config": {"image_size": 28, "patch_size": 14},
    "text_config": {"vocab_size": 704},
}


class Plain(Engine):
    """Says the level of the first picture; has no more words for a prompt with `refused` ids."""

    def __init__(self, owner: Fragile) -> None:
        self.owner, self.closed = owner, False

    def generate(self, asked: Sequence[Asked], decoding: Decoding) -> list[Written]:
        assert not self.closed
        self.owner.calls.append(list(asked))
        if self.owner.deaths:
            self.owner.deaths -= 1
            raise EngineDiedError("EngineCore encountered an issue")
        if any(each.pictures.mean() == self.owner.refused for each in asked):
            raise RefusedError("the prompt is longer\nthan max_model_len")
        return [
            Written(
                f"<think>hm</think>A plain picture of level {each.pictures.mean():.0f}.",
                prompt_tokens=len(each.ids),
                new_tokens=9,
            )
            for each in asked
        ]

    def close(self) -> None:
        self.closed = True


class Fragile(VllmCaptioner):
    """The captioner, whose engine dies `deaths` times."""

    deaths, refused = 0, -1.0

    def start(self) -> Engine:
        if not hasattr(self, "engines"):
            self.engines: list[Plain] = []
            self.calls: list[list[Asked]] = []
        self.engines.append(Plain(self))
        return self.engines[-1]


@pytest.fixture
def llava(tmp_path: Path, shared: Path) -> Path:
    """A folder of llava-hf's layout, without weights: nothing here reads any."""
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    model = shared / "golden" / "extractors" / "llama_sp_tiny.model"
    shutil.copy(model, tmp_path / "tokenizer.model")
    return tmp_path


def requests(count: int) -> list[CaptionRequest]:
    return [
        CaptionRequest(np.full((1, 28, 28, 3), i, np.uint8), "What is it?", float(i), f"v:{i}")
        for i in range(count)
    ]


def texts(count: int) -> list[str]:
    return [f"A plain picture of level {i}." for i in range(count)]


def test_llava_is_asked_in_the_tokens_of_its_own_code(llava: Path, shared: Path) -> None:
    golden = json.loads((shared / "golden/extractors/llava_prompt.json").read_text())
    seen = set()
    for each in golden["prompts"]:
        if not isinstance(each["question"], str):
            continue  # a talk of several turns
        words = words_of(llava, each["template"], Talk(), 1, 672)
        ids, thinking = words.ids(
            CaptionRequest(np.zeros((1, 28, 28, 3), np.uint8), each["question"], 0.0, "v:0")
        )
        place = {golden["image_token_index"]: LLAVA["image_token_index"]}
        assert list(ids) == [place.get(id_, id_) for id_ in each["input_ids"]]
        assert not thinking
        seen.add(each["template"])
    assert seen >= {"vicuna_v1", "llava_v1"}


def test_llava_sees_the_whole_picture_on_a_square_of_its_mean_colour(llava: Path) -> None:
    sight = Fragile(llava).sight
    # round down of 255 times CLIP's mean: `expand2square` in llava/mm_utils.py
    assert (sight.frames, sight.side, sight.fit) == (1, 28, "padded")
    assert sight.background == (122, 116, 104)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_next", "llava_onevision"])
def test_other_models_are_asked_as_their_own_processor_asks(family: str, tmp_path: Path) -> None:
    folder = tiny_vlms.write(family, tmp_path / family)
    words = words_of(folder, None, Talk(), 1, 56)
    frames = np.zeros((1, 56, 56, 3), np.uint8)
    ids, _ = words.ids(CaptionRequest(frames, "What is it?", 0.0, "v:0"))
    processor: Any = words._processor  # type: ignore[attr-defined]  # the one that is compared with
    text = Talk().text(processor, CaptionRequest(frames, "What is it?", 0.0, "v:0"))
    whole = processor(text=text, images=[Image.fromarray(frames[0])])["input_ids"]
    mark = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    expected = list(whole[0] if isinstance(whole[0], list) else whole)
    bos = processor.tokenizer.bos_token_id
    if expected[:2] == [bos, bos]:  # the template writes it, and this call once more
        expected = expected[1:]
    assert ids.count(mark) == 1
    assert mark in expected
    first = expected.index(mark)
    after = len(expected) - expected[::-1].index(mark)
    assert list(ids) == [*expected[:first], mark, *expected[after:]]


def test_a_caption_comes_to_the_frame_it_was_asked_for(llava: Path) -> None:
    made = Fragile(llava)
    results = made.caption(requests(5))
    assert [each.text for each in results] == texts(5), "thoughts are no part of a caption"
    assert {each.status for each in results} == {"ok"}
    assert made.caption([]) == []
    made.close()
    assert [each.closed for each in made.engines] == [True]


def test_an_engine_that_dies_is_started_again_and_loses_no_caption(llava: Path) -> None:
    made = Fragile(llava)
    made.caption(requests(2))
    made.deaths = 1
    assert [each.text for each in made.caption(requests(4))] == texts(4)
    assert [each.closed for each in made.engines] == [True, False]
    assert made.restarts == 1


def test_an_engine_that_dies_again_is_not_started_for_ever(llava: Path) -> None:
    made = Fragile(llava)
    made.deaths = 2
    with pytest.raises(EngineDiedError):
        made.caption(requests(4))
    assert all(each.closed for each in made.engines)
    # The batch is lost, the captioner is not.
    assert [each.text for each in made.caption(requests(3))] == texts(3)
    assert len(made.engines) == 3


def test_a_request_that_the_engine_refuses_spoils_no_other(llava: Path) -> None:
    made = Fragile(llava)
    made.refused = 2.0
    results = made.caption(requests(4))
    assert [each.text for each in results] == ["" if i == 2 else texts(4)[i] for i in range(4)]
    assert results[2].reason == "vLLM refused it (the prompt is longer than max_model_len)"
    assert results[2].finish_reason == "error"


def test_the_seed_of_a_request_does_not_depend_on_the_batch(llava: Path) -> None:
    made = Fragile(llava, temperature=0.7, seed=5)
    made.caption(requests(4))
    made.caption(requests(4)[2:])
    first, second = made.calls
    assert [each.seed for each in first[2:]] == [each.seed for each in second]
    assert len({each.seed for each in first}) == 4
    assert all(0 <= each.seed < 2**63 for each in first)
    other = Fragile(llava, temperature=0.7, seed=6)
    other.caption(requests(4))
    assert {each.seed for each in other.calls[0]}.isdisjoint(each.seed for each in first)


def test_the_engine_gets_what_was_set(llava: Path) -> None:
    made = Fragile(
        llava,
        max_num_seqs=7,
        max_model_len=900,
        gpu_memory_utilization=0.5,
        tensor_parallel=2,
        quantization="fp8",
        processor={"do_pad": False},
    )
    wanted = {
        "model": str(llava),
        "max_num_seqs": 7,
        "max_model_len": 900,
        "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "quantization": "fp8",
        "mm_processor_kwargs": {"do_pad": False},
        "limit_mm_per_prompt": {"image": 1, "video": 0, "audio": 0},
        "mm_processor_cache_gb": 0,
        "trust_remote_code": False,
    }
    assert {key: made.arguments[key] for key in wanted} == wanted
    assert str(llava) not in json.dumps(made.params()), "rows are free of the names of machines"
    assert VllmCaptioner.gpus({"tensor_parallel": 2}) == 2.0


def test_the_recipe_holds_what_decides_the_text_and_nothing_of_the_machine() -> None:
    one = VllmCaptioner.recipe({})
    assert one == VllmCaptioner.recipe({"max_num_seqs": 3, "tensor_parallel": 2, "dtype": "half"})
    for change in ({"template": "llava_v1"}, {"quantization": "fp8"}, {"side": 448}):
        assert VllmCaptioner.recipe(change) != one
    assert "human" in VllmCaptioner.recipe({"template": "llava_v1"})["template"]
    assert CAPTIONERS.get("vllm") is VllmCaptioner


def test_the_cost_of_a_caption_is_that_of_the_same_model_elsewhere(
    llava: Path, tmp_path: Path
) -> None:
    from models.captioners.llava import Llava

    config = LLAVA | {
        "text_config": {
            "vocab_size": 704,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
    }
    (llava / "config.json").write_text(json.dumps(config))
    made = VllmCaptioner.work(llava, {"max_new_tokens": 60, "tensor_parallel": 1})
    assert made == Llava.work(llava, {"max_new_tokens": 60})
    assert made is not None
    # Captioner `llava` refuses weights that are quantised; vLLM reads them.
    assert VllmCaptioner.work(llava, {"quantization": "fp8"}) is None
    awq = config | {"quantization_config": {"quant_method": "awq"}}
    (llava / "config.json").write_text(json.dumps(awq))
    assert VllmCaptioner.work(llava, {}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0; allowed: 1 to 4096"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5"),
        ({"frames": 4}, "LLaVA 1.5 sees one frame"),
        ({"system": "Be brief."}, "LLaVA 1.5 sees one frame and has templates of its own"),
        ({"template": "vicuna_v2"}, "did you mean 'vicuna_v1'"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], message: str, llava: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        Fragile(llava, **options)


@pytest.mark.parametrize("side", ["336", 10**9, 0, None, True])
def test_pictures_of_no_believable_size_are_refused(side: object, llava: Path) -> None:
    config = LLAVA | {"vision_config": {"image_size": side}}
    (llava / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"image_size is .*, expected 1 to 4,096 pixels"):
        Fragile(llava)


def test_folders_that_vllm_does_not_read_are_refused(llava: Path) -> None:
    (llava / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "x"}))
    with pytest.raises(UsageError, match="liuhaotian's layout, which vLLM does not read"):
        Fragile(llava)
    with pytest.raises(UsageError, match="needs a checkpoint, got none"):
        Fragile()


def test_without_vllm_the_check_of_a_machine_says_how_to_install_it(llava: Path) -> None:
    from importlib.util import find_spec

    if find_spec("vllm") is not None:
        VllmCaptioner.check(llava, {})
        return
    with pytest.raises(UsageError, match=r"needs the package `vllm`: .*\.\[vllm\]"):
        VllmCaptioner.check(llava, {})
    with pytest.raises(UsageError, match="use captioner openai"):
        VllmCaptioner(llava)


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_a_text_that_vllm_did_not_end_is_no_caption(reason: str | None) -> None:
    """`vllm.v1.engine.FinishReason` has five values, of which three are ends of a text."""
    ended = {"text": "A red", "finish_reason": reason, "token_ids": [1, 2]}
    output = SimpleNamespace(outputs=[SimpleNamespace(**ended)], prompt_token_ids=[3])
    assert _written(output) == Written("", "error", 1, 2, f"vLLM ended it with '{reason}'")
    for good, ours in (("stop", "stop"), ("repetition", "stop"), ("length", "length")):
        output.outputs[0].finish_reason = good
        assert _written(output) == Written("A red", ours, 1, 2)


def test_vllm_knows_every_argument_that_it_is_given(llava: Path) -> None:
    pytest.importorskip("vllm", reason="an extra of its own, which needs a GPU")
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs

    given = Fragile(llava, tensor_parallel=2).arguments
    assert set(given) <= {each.name for each in fields(EngineArgs)}
