"""The captioner `videochat` as a whole: untrained, from files, and with a scripted answer."""

from __future__ import annotations

import json
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from videochat_files import (
    drawn,
    own_shapes,
    qformer_shapes,
    sentencepiece_bytes,
    vit_shapes,
    write_llm,
    write_official,
)

from data.errors import UsageError
from data.store.types import ItemKey
from data.video.types import VideoFacts, Window
from models.captioners import CaptionRequest, create
from models.captioners.limits import bound, gpu_called, most_rows
from models.captioners.videochat import VideoChat
from models.captioners.videochat_text import frame_indices
from models.options import defaults_of
from models.tokens import ByteTokens
from pipeline.stage import Item, StageContext
from pipeline.stages.captions import CaptionsOptions, CaptionsStage

ASK = "Describe the following video concisely."
TIMES = tuple(index / 30 + 1e-3 for index in frame_indices(60, 8))


def made(**options: Any) -> VideoChat:
    defaults = {"max_new_tokens": 12, "retries": 0}
    captioner = create("videochat", **(defaults | options))
    assert isinstance(captioner, VideoChat)
    return captioner


def requests(count: int, frames: int = 8, ask: str = ASK) -> list[CaptionRequest]:
    random = np.random.Generator(np.random.PCG64(0))
    return [
        CaptionRequest(
            random.integers(0, 256, (frames, 56, 56, 3)).astype(np.uint8),
            ask + " Please." * (i % 2),  # prompts of two lengths
            2.0 * i,
            f"video:{i}",
            times_s=TIMES if frames == 8 else (0.0,),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videochat")
    write_official(folder, drawn(vit_shapes()), drawn(qformer_shapes()), drawn(own_shapes(64)), 64)
    write_llm(folder / "llm", 330)
    (folder / "llm" / "tokenizer.model").write_bytes(sentencepiece_bytes())
    return folder


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_gives_token_for_token_what_its_clips_give_alone(
    published: Path, temperature: float
) -> None:
    captioner = made(checkpoint=published, temperature=temperature)
    wanted = requests(5)
    alone = [captioner.caption([each])[0] for each in wanted]
    assert captioner.caption(wanted) == alone
    assert captioner.caption(wanted[::-1]) == alone[::-1]
    assert len({each.text for each in alone}) > 1


def test_small_batches_of_the_engine_change_nothing(published: Path) -> None:
    wanted = requests(5)
    whole = made(checkpoint=published).caption(wanted)
    assert made(checkpoint=published, max_rows=2).caption(wanted) == whole


def test_what_is_seen_decides_what_is_said(published: Path) -> None:
    captioner = made(checkpoint=published, temperature=0.0)
    (first,) = requests(1)
    darker = replace(first, frames=first.frames // 4)
    said = {captioner.caption([each])[0].text for each in (first, darker)}
    assert len(said) == 2


def test_sampling_is_seeded_by_seed_and_key_alone(published: Path) -> None:
    wanted = requests(2)
    first = made(checkpoint=published, seed=1).caption(wanted)
    assert made(checkpoint=published, seed=1).caption(wanted) == first
    assert made(checkpoint=published, seed=2).caption(wanted) != first
    renamed = [replace(each, key=f"other:{each.key}") for each in wanted]
    assert made(checkpoint=published, seed=1).caption(renamed) != first


def scripted(captioner: VideoChat, text: str) -> None:
    """Make its language model say `text` after any prompt, then its last character for ever: no
    layer does anything, and the head leads from each character to the next.
    """
    words = ByteTokens()
    lm = captioner.lm
    chain = [words.encode(":")[0], *words.encode(text)]
    assert len(set(chain)) == len(chain)
    with torch.no_grad():
        for layer in lm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        states = torch.randn(words.count, lm.config.hidden_size, generator=torch.manual_seed(0))
        states /= states.norm(dim=1, keepdim=True)
        lm.model.embed_tokens.weight.copy_(states)
        lm.lm_head.weight.zero_()
        for now, then in zip(chain, [*chain[1:], chain[-1]], strict=True):
            lm.lm_head.weight[then] += 5 * states[now]


@pytest.mark.parametrize(
    ("says", "text", "reason", "tokens"),
    [
        ("A-dogs.\n#", "A-dogs.", "stop", 8),  # ### ends it, and is no part of it
        ("A-dogs\n", "A-dogs", "length", 12),
    ],
)
def test_an_answer_ends_where_the_next_turn_would_begin(
    says: str, text: str, reason: str, tokens: int
) -> None:
    captioner = made(temperature=0.0)
    scripted(captioner, says)
    for result in captioner.caption(requests(3)):
        assert (result.text, result.finish_reason, result.new_tokens) == (text, reason, tokens)
        assert ("truncated" in result.flags) == (reason == "length")


def test_prompt_tokens_are_counted_with_those_of_the_clip() -> None:
    captioner = made()
    (result,) = captioner.caption(requests(1))
    before, after = captioner._words(requests(1)[0])
    assert result.prompt_tokens == 1 + len(before) + 9 + len(after)  # a token per byte, <s>


def test_a_single_frame_is_asked_about_as_a_picture() -> None:
    captioner = made(frames=1)
    assert (captioner.sight.frames, captioner.sight.fit) == (1, "stretched")
    (request,) = requests(1, frames=1, ask="Describe the image.")
    before, after = captioner._words(request)
    assert (before, after[:8]) == ("###Human: <Image>", "</Image>")
    assert "seconds" not in after
    assert captioner.caption([request])[0].new_tokens == 12


def test_the_clock_decides_which_seconds_the_model_reads() -> None:
    request = requests(2)[1]  # begins at 2 s
    assert "at 0.1, 0.3, 0.6, 0.8, 1.1, 1.3, 1.6, 1.8 seconds" in made()._words(request)[1]
    shown = made(clock="video")._words(request)[1]
    assert "at 2.1, 2.3, 2.6, 2.8, 3.1, 3.3, 3.6, 3.8 seconds" in shown


def test_frames_without_times_or_of_another_size_are_a_mistake_of_the_caller() -> None:
    captioner = made()
    (request,) = requests(1)
    with pytest.raises(ValueError, match="the time of each of 8 frames, got 0 times"):
        captioner.caption([replace(request, times_s=())])
    with pytest.raises(ValueError, match=r"frames of shape \(8, 56, 56, 3\), got \(4, 56, 56, 3\)"):
        captioner.caption([replace(request, frames=request.frames[:4])])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frames": 0}, r"'frames' is 0; allowed: 1 \(a picture\) to 64"),
        ({"frames": 65}, "'frames' is 65"),
        ({"clock": "wall"}, "'clock' is 'wall'; allowed: clip, video"),
        ({"dtype": "int8"}, "dtype is 'int8'; allowed: auto, bfloat16"),
        ({"top_p": 1.5}, r"'top_p' is 1\.5; allowed: 0 to 1"),
        ({"max_new_tokens": 0}, "'max_new_tokens' is 0; allowed: 1 and more"),
        ({"temperature": -1.0}, "'temperature' is -1"),
    ],
)
def test_options_that_are_not_allowed_say_what_is(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(**options)
    with pytest.raises(UsageError, match=said):  # on the driver, before anything is built
        VideoChat.check(None, options)


def test_the_files_are_looked_for_before_anything_is_built(tmp_path: Path, published: Path) -> None:
    VideoChat.check(published, {})
    with pytest.raises(UsageError, match="must hold one language model"):
        VideoChat.check(tmp_path, {})


def test_the_recipe_has_what_changes_captions_and_nothing_of_the_machine() -> None:
    recipe = VideoChat.recipe({"clock": "video", "dtype": "bfloat16", "max_rows": 4})
    assert json.loads(json.dumps(recipe)) == recipe
    assert not {"dtype", "max_rows", "graphs", "device", "seed"} & recipe.keys()
    sampled = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "max_new_tokens": 200}
    assert recipe.items() >= (sampled | {"clock": "video", "frames": 8, "layout": 1}).items()


def test_provenance_names_weights_and_machine(published: Path) -> None:
    untrained, loaded = made().params(), made(checkpoint=published).params()
    assert untrained["weights"]["kind"] == "random"
    assert untrained["language"]["kind"] == "random"
    assert (loaded["weights"]["kind"], loaded["language"]["kind"]) == ("file", "file")
    assert loaded["weights"]["source"].startswith("eva_vit_g.pth, blip2")
    assert json.loads(json.dumps(loaded)) == loaded


def test_the_page_of_captions_has_every_option_with_its_default(root: Path) -> None:
    page = (root / "docs" / "captioners.md").read_text()
    section = page.split("## VideoChat")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE)
    told = {name: yaml.safe_load(default) for name, default in rows}
    options = defaults_of(VideoChat)
    assert told == {name: options[name] for name in options.keys() - {"seed", "device"}}


def test_the_networks_can_be_let_go() -> None:
    captioner = made()
    captioner.caption(requests(1))
    network = weakref.ref(captioner.eyes)
    captioner.close()
    assert network() is None


def test_the_cost_of_a_caption_is_that_of_the_specification(tmp_path: Path) -> None:
    """specs/captioners.md §3.2: 8 frames, 166 prompt tokens, 80 new: 67 a second on an H200, up to
    571 at once (that one with the reserve of then)."""
    folder = write_official(tmp_path / "13b", {}, {}, {}, 5120)
    config = {
        "model_type": "llama",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "vocab_size": 32001,
    }
    (folder / "llm").mkdir()
    (folder / "llm" / "config.json").write_text(json.dumps(config))
    work = VideoChat.work(folder, {"max_new_tokens": 80})
    gpu = gpu_called("NVIDIA H200")
    assert work is not None
    assert gpu is not None
    assert work.prompt_tokens == pytest.approx(166, abs=15)
    as_there = replace(work, prompt_flops=work.prompt_flops - 26.2e9 * (work.prompt_tokens - 166))
    as_there = replace(as_there, prompt_tokens=166)
    assert bound(as_there, gpu, 571, 80).captions_hz == pytest.approx(67, rel=0.01)
    rows = most_rows(as_there, gpu.memory_bytes - work.resident_bytes)
    assert rows == pytest.approx(571, rel=0.02)
    assert VideoChat.work(None, {}) is None


def test_the_stage_asks_for_the_frames_of_each_clip_and_tells_their_times() -> None:
    """One caption per 2-s clip, as LMR has it."""
    options = CaptionsOptions(
        captioner="videochat", per="clip", prompt="lmr", options={"max_new_tokens": 4, "retries": 0}
    )
    stage = CaptionsStage(StageContext(2.0), options)
    stage.setup()
    facts = VideoFacts(6.0, 30.0, 180, 64, 64, 0, "h264", "yuv420p", 1, False, 0)
    item = Item(ItemKey("v", "0" * 64), facts=facts)
    request = stage.request(item)
    assert (request.view.fit, request.view.short_side, request.inclusive) == ("cropped", 56, True)
    frames = np.floor(request.times_s * 30 + 1e-6).astype(int)
    seen = np.array(frame_indices(60, 8))
    np.testing.assert_array_equal(frames, np.arange(3)[:, None] * 60 + seen)
    pixels = np.zeros((8, 56, 56, 3), dtype=np.uint8)
    windows = [Window("captions", unit, pixels, request.times_s[unit]) for unit in range(3)]
    results = stage.encode(item, windows)
    assert [each.result and each.result.new_tokens for each in results] == [4, 4, 4]
    row = stage.finish(item, results)
    assert len(row.texts["caption"]) == 3
