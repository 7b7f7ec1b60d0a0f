from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from data.errors import UsageError
from data.store.types import ItemKey
from data.video.types import VideoFacts
from pipeline.stage import Item, StageContext
from pipeline.stages.captions import CaptionsOptions, CaptionsStage, choose_instruction


def stage(clip_len_s: float = 2.0, **options: Any) -> CaptionsStage:
    return CaptionsStage(StageContext(clip_len_s), CaptionsOptions(**options))


def test_an_unknown_captioner_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="unknown captioner 'pixle'; did you mean 'pixel'"):
        stage(captioner="pixle").params()


def facts(duration_s: float) -> VideoFacts:
    return VideoFacts(duration_s, 10, 1, 64, 64, 0, "h264", "yuv420p", 1, False, 0)


def units(made: CaptionsStage, duration_s: float) -> list[list[float]]:
    """Times of the frames of every caption, part by part as the engine asks for them."""
    made.setup()
    found = facts(duration_s)
    parts = made.parts(found)
    items = [Item(ItemKey("v", "0" * 64, part, parts), facts=found) for part in range(parts)]
    return [row for item in items for row in made.request(item).times_s.tolist()]


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


def test_parts_join_to_what_one_part_asks_for() -> None:
    whole, cut = stage(part_size=64), stage(part_size=4)
    assert (whole.parts(facts(10.5)), cut.parts(facts(10.5))) == (1, 3)
    np.testing.assert_array_equal(units(cut, 10.5), units(whole, 10.5))


def test_frames_of_a_timestamp_end_at_it_and_frames_of_a_clip_are_spread_over_it() -> None:
    rows = np.array(units(stage(frame_gap_s=0.1), 3.0))
    k = rows.shape[1]
    np.testing.assert_allclose(rows, np.arange(3)[:, None] + 0.1 * np.arange(1 - k, 1))
    rows = np.array(units(stage(per="clip"), 5.2))
    expected = np.arange(3)[:, None] * 2.0 + (np.arange(k) + 0.5) * 2.0 / k
    np.testing.assert_allclose(rows, expected)


def test_the_choice_of_an_instruction_is_even_and_depends_on_nothing_but_its_arguments() -> None:
    # first 16 hex of sha256("0|abab...|index"), mod 10: it may never change between versions
    choices = [choose_instruction(0, "ab" * 32, index, 10) for index in range(6)]
    assert choices == [0, 2, 5, 8, 1, 6]
    counts = Counter(choose_instruction(1, "cd" * 32, index, 10) for index in range(20_000))
    assert set(counts) == set(range(10))
    assert max(counts.values()) < 1.1 * min(counts.values())


def test_the_recipe_of_a_captioner_without_weights_does_not_speak_of_random_ones() -> None:
    params = stage().params()
    assert (params["captioner"], params["weights"]) == ("pixel", {"kind": "none"})
