"""When captions are asked for, what is asked, and what makes them other captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toy_captioners import Toy, toys_registered

from data.errors import UsageError
from data.store.types import ItemKey
from data.video.types import VideoFacts
from models.captioners import CAPTIONERS
from pipeline.config import load_pipeline_config
from pipeline.doctor import _captioner, _weights_of_stages
from pipeline.stage import Item, StageContext
from pipeline.stages.caption_slots import Slots
from pipeline.stages.captions import CaptionsOptions, CaptionsStage, choose_instruction

CONTENT = "0" * 64


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys_registered():
        yield


def stage(clip_len_s: float = 2.0, device: str = "cpu", **options: Any) -> CaptionsStage:
    return CaptionsStage(StageContext(clip_len_s, device=device), CaptionsOptions(**options))


def recipe_id(**options: Any) -> str:
    return stage(**options).recipe({"probe": "0" * 16}).id


def facts(duration_s: float) -> VideoFacts:
    return VideoFacts(duration_s, 10, 1, 64, 64, 0, "h264", "yuv420p", 1, False, 0)


def units(made: CaptionsStage, duration_s: float) -> list[list[float]]:
    """Times of the frames of every caption, part by part as the engine asks for them."""
    made.setup()
    found = facts(duration_s)
    parts = made.parts(found)
    items = [Item(ItemKey("v", CONTENT, part, parts), facts=found) for part in range(parts)]
    return [row for item in items for row in made.request(item).times_s.tolist()]


# --- when


@pytest.mark.parametrize(
    ("duration_s", "options", "times"),
    [
        (3.0, {}, [0, 1, 2]),
        (3.2, {}, [0, 1, 2, 3]),
        (3.0 + 1e-9, {}, [0, 1, 2]),
        (0.0, {}, [0]),
        (3.0, {"offset_s": 0.5}, [0.5, 1.5, 2.5]),
        (3.0, {"every_s": 2.0}, [0, 2]),
        (0.3, {"offset_s": 0.5}, [0.5]),
    ],
)
def test_captions_are_asked_for_at_every_interval_before_the_end(
    duration_s: float, options: dict[str, Any], times: list[float]
) -> None:
    last = [row[-1] for row in units(stage(**options), duration_s)]
    np.testing.assert_allclose(last, times)


@pytest.mark.parametrize(
    ("clip_len_s", "options", "share"),
    [
        (2.0, {}, ""),
        (1.0, {}, ""),
        (0.5, {}, "about 50% of the clips of 0.5 s"),
        (1 / 6, {}, "about 83% of the clips of 0.167 s"),
        (2.0, {"every_s": 8.0}, "about 75% of the clips of 2 s"),
        (0.5, {"per": "clip"}, ""),
        (0.5, {"captioner": "teller"}, ""),
    ],
)
def test_clips_that_will_have_no_caption_of_their_own_are_told(
    clip_len_s: float, options: dict[str, Any], share: str
) -> None:
    told = stage(clip_len_s, **options).notice
    assert (share in told) if share else (told == "")


def test_parts_join_to_what_one_part_asks_for() -> None:
    whole, cut = stage(part_size=64), stage(part_size=4)
    assert (whole.parts(facts(10.5)), cut.parts(facts(10.5))) == (1, 3)
    assert [cut.amount(facts(10.5), part) for part in range(3)] == [4, 4, 3]
    np.testing.assert_array_equal(units(cut, 10.5), units(whole, 10.5))


def test_frames_of_a_timestamp_end_at_it_and_frames_of_a_clip_are_spread_over_it() -> None:
    rows = np.array(units(stage(frame_gap_s=0.1), 3.0))
    k = rows.shape[1]
    np.testing.assert_allclose(rows, np.arange(3)[:, None] + 0.1 * np.arange(1 - k, 1))
    rows = np.array(units(stage(per="clip"), 5.2))
    expected = np.arange(3)[:, None] * 2.0 + (np.arange(k) + 0.5) * 2.0 / k
    np.testing.assert_allclose(rows, expected)


def test_a_caption_per_clip_is_a_caption_for_every_clip_of_the_grid() -> None:
    made = stage(clip_len_s=2.0, per="clip")
    for duration_s in (0.1, 2.9, 3.1, 150.0):
        found = facts(duration_s)
        sizes = [made.amount(found, part) for part in range(made.parts(found))]
        assert sum(sizes) == found.grid(2.0).n, duration_s


# --- what is asked


def test_the_choice_of_an_instruction_is_even_and_depends_on_nothing_but_its_arguments() -> None:
    # first 16 hex of sha256("0|abab...|index"), mod 10: it may never change between versions
    choices = [choose_instruction(0, "ab" * 32, index, 10) for index in range(6)]
    assert choices == [0, 2, 5, 8, 1, 6]
    counts = Counter(choose_instruction(1, "cd" * 32, index, 10) for index in range(20_000))
    assert set(counts) == set(range(10))
    assert max(counts.values()) < 1.1 * min(counts.values())


def test_a_prompt_may_be_a_file_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# my own\nWhat is happening?\nWho is there?\n")
    config = {"store": "s", "stages": {"captions": {"captioner": "toy", "prompt": "mine.txt"}}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    loaded = load_pipeline_config(tmp_path / "pipeline.yaml")
    made = CaptionsStage(loaded.context, loaded.stage_options["captions"])
    assert made.params()["instructions"] == ["What is happening?", "Who is there?"]
    shipped = load_pipeline_config(tmp_path / "pipeline.yaml", ["stages.captions.prompt=lmr"])
    assert getattr(shipped.stage_options["captions"], "prompt", "") == "lmr"


def test_a_prompt_file_travels_to_workers_that_do_not_see_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("What is happening?")
    made = stage(captioner="toy", prompt=str(file))
    made.recipe({})
    file.unlink()
    made.setup()
    assert made.params()["instructions"] == ["What is happening?"]


# --- what makes them other captions


def test_the_words_of_a_prompt_make_the_recipe_and_its_name_and_comments_do_not(
    tmp_path: Path,
) -> None:
    one, same, other = (tmp_path / f"{name}.txt" for name in ("one", "same", "other"))
    one.write_text("What is happening?\n")
    same.write_text("# asked of our cooking videos\nWhat is happening?")
    other.write_text("What is happening here?\n")
    ids = [recipe_id(captioner="toy", prompt=str(file)) for file in (one, same, other)]
    assert ids[0] == ids[1] != ids[2]
    assert recipe_id(captioner="toy", prompt="tea") != recipe_id(captioner="toy", prompt="lmr")


def test_a_captioner_that_follows_no_prompt_is_not_run_again_for_another_one() -> None:
    assert recipe_id(captioner="pixel", prompt="tea") == recipe_id(captioner="pixel", prompt="lmr")
    assert "instructions" not in stage(captioner="pixel").params()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"batch_size": 8}, {"batch_size": 256}),
        ({"options": {"speed": 3}}, {}),
        ({"failed": "keep"}, {"failed": "quarantine"}),
        ({"gpus": 0.5}, {"gpus": 2}),
        ({"per": "clip", "every_s": 2.0, "offset_s": 0.5}, {"per": "clip"}),
        ({"options": {"style": "Level"}}, {}),
        ({"reuse": {"kind": "exact", "most_bits": 9}}, {"reuse": {"kind": "exact"}}),
        ({"reuse": {"longest_s": 9}}, {}),
        ({"captioner": "teller", "part_size": 3, "every_s": 9.0}, {"captioner": "teller"}),
    ],
)
def test_what_plays_no_part_in_the_captions_is_not_in_the_recipe(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert recipe_id(**{"captioner": "toy", **one}) == recipe_id(**{"captioner": "toy", **other})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"every_s": 2.0},
        {"offset_s": 0.5},
        {"per": "clip"},
        {"frame_gap_s": 0.5},
        {"part_size": 32},
        {"options": {"style": "Brightness"}},
        {"reuse": {"kind": "near"}},
        {"captioner": "pixel"},
    ],
)
def test_what_plays_a_part_in_the_captions_is_in_the_recipe(change: dict[str, Any]) -> None:
    assert recipe_id(**{"captioner": "toy", **change}) != recipe_id(captioner="toy")


def test_the_recipe_says_all_options_of_the_captioner_also_those_that_nobody_gave() -> None:
    assert stage(captioner="toy").params()["options"] == {"style": "Level"}


def test_the_recipe_of_a_captioner_without_weights_does_not_speak_of_random_ones() -> None:
    params = stage().params()
    assert (params["captioner"], params["weights"]) == ("pixel", {"kind": "none"})


# --- refused on the driver


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"captioner": "pixle"}, "unknown captioner 'pixle'; did you mean 'pixel'"),
        ({"captioner": "toy", "options": {"stile": "x"}}, "unknown option 'stile'.*'style'"),
        ({"captioner": "toy", "options": {"style": 3}}, "option 'style' is 3; allowed: str"),
        ({"captioner": "toy", "options": {"speed": "x"}}, r"'x'; allowed: int \| None"),
        ({"captioner": "toy", "options": {"seed": 3}}, r"the seed is stages\.captions\.seed"),
        ({"captioner": "toy", "prompt": "tee"}, "unknown prompt 'tee'; did you mean 'tea'"),
        ({"captioner": "toy", "prompt": "no/file.txt"}, r"no/file\.txt.* does not exist"),
        ({"captioner": "toy", "checkpoint": Path("x.bin")}, "toy has no weights; leave its"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        stage(**options).recipe({})


@pytest.mark.parametrize("every_s", [1e-9, 0, -1, float("inf"), float("nan")])
def test_no_video_has_more_captions_than_one_every_millisecond(every_s: float) -> None:
    with pytest.raises(ValueError, match="every_s"):
        CaptionsOptions(every_s=every_s)


def test_gpus_are_what_the_captioner_asks_for_unless_the_user_says_otherwise() -> None:
    assert stage(device="cuda", captioner="pixel").resources.gpus == 0
    assert stage(device="cuda", captioner="pixel", gpus=0.25).resources.gpus == 0.25
    assert not stage(device="cuda", captioner="pixel").resources.auto_gpus


def test_gpus_of_a_captioner_with_weights_are_whole_ones_where_there_are_some() -> None:
    class Heavy(Toy):
        name = "heavy"
        has_weights = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CAPTIONERS._things, "heavy", Heavy)
        assert stage(device="cuda", captioner="heavy", gpus="auto").resources.gpus == 1
        assert stage(device="cpu", captioner="heavy").resources.gpus == 0


def test_the_instruction_of_a_clip_does_not_depend_on_parts_or_on_the_rest_of_the_video() -> None:
    def chosen(duration_s: float, part_size: int) -> list[int | None]:
        slots = Slots("clip", 1.0, 0.0, 2.0, part_size, seed=3, instructions=10)
        found = facts(duration_s)
        parts = range(slots.parts(found))
        return [slot.instruction for part in parts for slot in slots.of_part(CONTENT, found, part)]

    assert chosen(300.0, 64) == chosen(300.0, 7) == chosen(3000.0, 64)[:150]
    assert set(chosen(300.0, 64)) == set(range(10))


def test_a_path_among_the_options_is_meant_from_the_file_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    for given, meant in (("a/b.csv", str(tmp_path / "a/b.csv")), ("/x/b.csv", "/x/b.csv")):
        options = {"path": given, "style": "a/b.csv"}
        file.write_text(yaml.safe_dump({"stages": {"captions": {"options": options}}}))
        section = load_pipeline_config(file).stage_options["captions"]
        assert getattr(section, "options", None) == {"path": meant, "style": "a/b.csv"}


@pytest.mark.parametrize(
    ("captions", "state", "told"),
    [
        ({"captioner": "toy", "prompt": "lmr"}, "ok", "a caption per 1 s, prompt lmr (10 instr"),
        ({"captioner": "toy", "per": "clip"}, "ok", "a caption per clip, prompt tea (1 instr"),
        ({"captioner": "teller"}, "ok", "times of its own, no prompt"),
        ({"captioner": "toy", "options": {"stile": "x"}}, "fail", "did you mean 'style'"),
        ({"captioner": "toy", "prompt": "nowhere.txt"}, "fail", "does not exist"),
        ({"captioner": "pixle"}, "fail", "did you mean 'pixel'"),
    ],
)
def test_the_doctor_says_whether_the_captioner_can_be_used(
    tmp_path: Path, captions: dict[str, Any], state: str, told: str
) -> None:
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"stages": {"captions": captions}}))
    config = load_pipeline_config(tmp_path / "pipeline.yaml")
    (check,) = _captioner(config)
    assert (check.name, check.state) == (f"captioner {captions['captioner']}", state)
    assert told in check.found + check.advice
    assert not list(_weights_of_stages(config))  # nothing has weights here
