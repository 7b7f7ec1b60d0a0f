"""From frames to rows: records, captions that fail, captions that serve twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_captioners import ASKED, DOWN, toys_registered

from data.errors import InputError
from data.store.types import ItemKey, Row
from data.video.types import Video, VideoFacts, Window
from models.captioners import load_prompt
from pipeline.stage import Item, StageContext, UnfinishedError
from pipeline.stages.caption_reuse import input_hash
from pipeline.stages.captions import CaptionsOptions, CaptionsStage

CONTENT = "ab" * 32
DURATION_S = 5.0


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys_registered():
        yield


def started(**options: Any) -> CaptionsStage:
    made = CaptionsStage(StageContext(2.0), CaptionsOptions(**{"captioner": "toy", **options}))
    made.setup()
    return made


def item_of(
    made: CaptionsStage, *, part: int = 0, id_: str = "v", duration_s: float = DURATION_S
) -> Item:
    facts = VideoFacts(duration_s, 10, 1, 16, 16, 0, "h264", "yuv420p", 1, False, 0)
    key = ItemKey(id_, CONTENT, part, made.parts(facts))
    return Item(key, Video(id_, Path("v.mp4")), facts)


def picture(level: int, k: int = 2, side: int = 16) -> NDArray[np.uint8]:
    """A ramp around a level: with a dHash of its own kind, and a mean."""
    ramp = np.linspace(-6, 6, side)[None, None, :, None]
    return np.broadcast_to(level + ramp, (k, side, side, 3)).round().astype(np.uint8)


def windows(made: CaptionsStage, item: Item, levels: Sequence[int]) -> list[Window]:
    """What the decoder would give; `levels` are those of the part's units."""
    request = made.request(item)
    units = [made._part(item).wanted[index] for index in range(len(request.times_s))]
    return [
        Window("captions", index, picture(levels[unit]), request.times_s[index].clip(0) - 0.0004)
        for index, unit in enumerate(units)
    ]


def run(made: CaptionsStage, item: Item, levels: Sequence[int], batch: int = 64) -> Row:
    shown = windows(made, item, levels)
    results: list[Any] = []
    for first in range(0, len(shown), batch):
        results += made.encode(item, shown[first : first + batch])
    return made.finish(item, results)


def plain(row: Row) -> tuple[Any, ...]:
    """All of a row, to be compared."""
    return row.key, row.grid, row["time_s"].tolist(), dict(row.texts), dict(row.facts)


def records(row: Row) -> list[dict[str, Any]]:
    return [json.loads(text) for text in row.texts["record"]]


LEVELS = [10, 60, 110, 160, 210]


# --- records


def test_a_record_says_how_its_caption_came_about() -> None:
    made = started(prompt="lmr", seed=5)
    item = item_of(made)
    row = run(made, item, LEVELS)
    record = records(row)[2]
    instruction = record.pop("instruction")
    assert row.texts["caption"][2] == f"Level 110: {load_prompt('lmr').instructions[instruction]}"
    assert record == {
        "attempts": 1,
        "finish_reason": "stop",
        "flags": [],
        "frames_s": [1.7996, 1.9996],
        "input": input_hash(picture(110)),
        "new_tokens": 5,
        "prompt": "lmr",
        "prompt_tokens": 11,
        "seed": 5,
        "start_s": 2.0,
        "status": "ok",
    }
    assert row.facts == {
        "captions": 5,
        "new_tokens": 25,
        "prompt_tokens": 55,
        "reused": 0,
        "flagged": 0,
        "failed": 0,
        "captioner": {"captioner": "toy", "version": 7},
    }


def test_the_record_of_a_clip_says_where_it_ends() -> None:
    made = started(per="clip")
    row = run(made, item_of(made), LEVELS)
    spans = [(each["start_s"], each["end_s"]) for each in records(row)]
    assert spans == [(0, 2), (2, 4), (4, 6)]
    assert row["time_s"].tolist() == [0, 2, 4]


def test_the_captioner_is_told_key_video_and_times_and_they_do_not_depend_on_the_batch() -> None:
    made = started(part_size=3, frame_gap_s=0.2)
    item = item_of(made, part=1)
    run(made, item, LEVELS[3:], batch=1)
    keys = [(each.key, each.video, each.time_s, each.times_s) for each in ASKED]
    assert keys == [(f"{CONTENT}:{i}", "v", float(i), (-0.2, 0.0)) for i in (3, 4)]


def test_windows_of_several_videos_in_one_batch_give_what_each_gives_alone() -> None:
    made = started(reuse={"kind": "near"})
    one, other = item_of(made, id_="a"), item_of(made, id_="b", duration_s=3.0)
    alone = [run(made, one, [10, 10, 90, 90, 10]), run(made, other, [90, 10, 10])]
    shown = [(one, each) for each in windows(made, one, [10, 10, 90, 90, 10])]
    shown += [(other, each) for each in windows(made, other, [90, 10, 10])]
    shown = [shown[i] for i in (0, 5, 1, 2, 6, 3, 4, 7)]  # each video in its own order
    results = made.encode_shared(shown)
    for item, row in zip((one, other), alone, strict=True):
        mine = [r for (of, _), r in zip(shown, results, strict=True) if of is item]
        assert plain(made.finish(item, mine)) == plain(row)


# --- captions that fail


def test_a_part_with_failed_captions_waits_and_only_these_are_asked_for_again() -> None:
    made = started()
    item = item_of(made)
    whole = run(made, item, LEVELS)
    DOWN.update({1.0, 3.0})
    with pytest.raises(
        UnfinishedError, match=r"2 of the 5 .* from 0 to 4 s of 'v'.* at 1 s: HTTP 503"
    ):
        run(made, item, LEVELS)
    with pytest.raises(UnfinishedError) as caught:
        run(made, item, LEVELS)
    assert caught.value.reason == "captions-failed"
    DOWN.clear()
    ASKED.clear()
    again = replace(item, kept=caught.value.kept)
    assert made.request(again).times_s[:, -1].tolist() == [1, 3]
    assert plain(run(made, again, LEVELS)) == plain(whole)
    assert [each.time_s for each in ASKED] == [1.0, 3.0]


def test_a_part_can_be_finished_in_many_small_steps() -> None:
    made = started()
    item = item_of(made)
    whole = run(made, item, LEVELS)
    for missing in ({0.0, 1.0, 2.0, 3.0, 4.0}, {0.0, 1.0, 4.0}, {4.0}):
        DOWN.clear()
        DOWN.update(missing)
        with pytest.raises(UnfinishedError) as caught:
            run(made, item, LEVELS)
        item = replace(item, kept=caught.value.kept)
        assert len(made.request(item).times_s) == len(missing)
    DOWN.clear()
    assert plain(run(made, item, LEVELS)) == plain(whole)


def test_failed_captions_can_be_stored_as_such_with_their_reason() -> None:
    made = started(failed="keep")
    DOWN.add(1.0)
    row = run(made, item_of(made), LEVELS)
    record = records(row)[1]
    assert (record["status"], record["reason"]) == ("failed", "HTTP 503, four times")
    assert (row.texts["caption"][1], record["attempts"], row.facts["failed"]) == ("", 4, 1)
    assert [each["status"] for each in records(row)].count("ok") == 4


@pytest.mark.parametrize(
    "kept",
    [
        "no JSON",
        "[]",
        "[null,null,null,null]",
        '[{"source":1},null,null,null,null]',
        '[{"source":0},null,null,null,null]',
        '[null,{"source":-1},null,null,null]',
        '[null,{"source":0},{"source":1},null,null]',
        "[{},null,null,null,null]",
        '[{"result":{"text":"x","status":"fine"}},null,null,null,null]',
        '[{"result":{"text":"","status":"failed","finish_reason":"error"}},null,null,null,null]',
        '[{"result":{"text":"x","status":"ok","end_s":NaN}},null,null,null,null]',
        '[{"result":{"text":"\\ud800","status":"ok"}},null,null,null,null]',
    ],
)
def test_what_does_not_fit_of_a_file_of_kept_captions_is_made_again(kept: str) -> None:
    made = started()
    item = item_of(made)
    assert plain(run(made, replace(item, kept=kept), LEVELS)) == plain(run(made, item, LEVELS))


# --- captions that serve twice


def test_pictures_that_hardly_differ_get_the_caption_of_the_first_and_say_so() -> None:
    made = started(reuse={"kind": "near"})
    row = run(made, item_of(made), [10, 12, 14, 90, 91])
    assert [each.time_s for each in ASKED] == [0, 3]
    texts = row.texts["caption"]
    assert texts[0] == texts[1] == texts[2] != texts[3] == texts[4]
    sources = [(each.get("reused_from"), each.get("distance")) for each in records(row)]
    assert sources == [(None, None), (0, 0), (0, 0), (None, None), (3, 0)]
    shared = records(row)[1]
    assert (shared["attempts"], shared["new_tokens"], shared["prompt_tokens"]) == (0, 0, 0)
    assert shared["input"] == input_hash(picture(12))  # its own pictures, not those of the source
    assert (row.facts["reused"], row.facts["new_tokens"], row.facts["captions"]) == (3, 10, 5)


def test_a_slow_drift_is_compared_with_the_last_captioned_picture() -> None:
    made = started(reuse={"kind": "near", "most_change": 12})
    run(made, item_of(made), [10, 18, 26, 34, 42])  # 8 from one to the next
    assert [each.time_s for each in ASKED] == [0, 2, 4]


def test_a_caption_serves_for_so_many_seconds_and_no_longer() -> None:
    made = started(reuse={"kind": "near", "longest_s": 2.0})
    run(made, item_of(made), [10] * 5)
    assert [each.time_s for each in ASKED] == [0, 3]


def test_exact_reuse_takes_equal_pictures_only() -> None:
    made = started(reuse={"kind": "exact"})
    run(made, item_of(made), [10, 10, 11, 11, 10])
    assert [each.time_s for each in ASKED] == [0, 2, 4]


def test_nothing_is_reused_unless_it_is_asked_for() -> None:
    made = started()
    run(made, item_of(made), [10] * 5)
    assert len(ASKED) == 5


def test_parts_do_not_look_at_each_other() -> None:
    made = started(reuse={"kind": "near"}, part_size=3)
    second = run(made, item_of(made, part=1), [10, 10])
    assert "reused_from" not in records(second)[0]
    assert records(second)[1]["reused_from"] == 3  # counted in the video


def test_reuse_does_not_depend_on_batches_or_on_being_called_again() -> None:
    made = started(reuse={"kind": "near"})
    item = item_of(made)
    levels = [10, 12, 90, 91, 10]
    whole = run(made, item, levels)
    assert plain(run(made, item, levels, batch=1)) == plain(whole)
    shown = windows(made, item, levels)
    made.encode(item, shown)  # a batch with another video's windows failed: alone once more
    assert plain(made.finish(item, made.encode(item, shown))) == plain(whole)


def test_units_that_share_a_lost_caption_get_the_new_one() -> None:
    made = started(reuse={"kind": "near"})
    item = item_of(made)
    levels = [10, 12, 90, 91, 10]
    whole = run(made, item, levels)
    DOWN.add(2.0)
    with pytest.raises(UnfinishedError, match="2 of the 5") as caught:
        run(made, item, levels)
    DOWN.clear()
    ASKED.clear()
    assert plain(run(made, replace(item, kept=caught.value.kept), levels)) == plain(whole)
    assert [each.time_s for each in ASKED] == [2.0]


# --- captions that have times of their own


def test_captions_with_times_of_their_own_need_no_frames_and_come_in_one_part() -> None:
    made = started(captioner="teller", part_size=2)
    item = item_of(made, id_="known", duration_s=500.0)
    assert item.key.parts == 1
    assert len(made.request(item).times_s) == 0
    row = made.finish(item, [])
    assert row["time_s"].tolist() == [0.5, 1.75, 4.0]
    assert row.texts["caption"] == ["known at 0.5", "known at 1.75", "known at 4"]
    first = records(row)[0]
    assert (first["start_s"], first["end_s"]) == (0.5, 1.5)
    assert not {"prompt", "instruction", "input", "frames_s"} & first.keys()


def test_a_video_without_captions_of_its_own_goes_to_quarantine() -> None:
    made = started(captioner="teller")
    with pytest.raises(InputError, match="captioner teller has no captions of 'v'") as caught:
        made.finish(item_of(made), [])
    assert caught.value.reason == "no-captions"
