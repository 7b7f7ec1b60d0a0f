from __future__ import annotations

import json
from typing import Any

import numpy as np

from data.grid import Grid
from data.store.types import ItemKey, Row
from pipeline.stage import Item, StageContext
from pipeline.stages.narratives import NarrativesOptions, NarrativesStage

KEY = ItemKey("v", "0" * 64)
GRID = Grid(4.0, 1.0)


class Captions:
    """Three captions: at 0 s, 1 s (flagged) and 2.5 s; the fourth clip has none."""

    def __init__(self, texts: tuple[str, str, str], statuses: tuple[str, str, str]) -> None:
        records = [json.dumps({"status": status}) for status in statuses]
        arrays = {"time_s": np.array([0.0, 1.0, 2.5])}
        self._row = Row(KEY, GRID, arrays, {"caption": list(texts), "record": records})

    def row(self, stage: str) -> Row:
        assert stage == "captions"
        return self._row


TEXTS = ("A red square.", "USER: a red square", "A blue  star\nmoves.")


def narrate(inputs: Captions, **options: Any) -> Row:
    stage = NarrativesStage(StageContext(1.0), NarrativesOptions(encoder="hash", **options))
    stage.setup()
    return stage.process(Item(KEY), inputs)


def test_each_clip_gets_the_vector_of_its_caption_and_says_whether_it_is_its_own() -> None:
    row = narrate(Captions(TEXTS, ("ok", "flagged", "ok")))
    assert row["coverage"].tolist() == [1, 1, 1, 0]
    np.testing.assert_array_equal(row["narrative"][3], row["narrative"][2])
    assert len({vector.tobytes() for vector in row["narrative"]}) == 3
    assert row.texts["paragraph"] == [
        "0: A red square.",
        "1: USER: a red square",
        "2.5: A blue star moves.",
    ]


def test_flagged_captions_can_be_taken_as_missing_and_failed_ones_always_are() -> None:
    used = narrate(Captions(TEXTS, ("ok", "flagged", "failed")))
    assert used["coverage"].tolist() == [1, 1, 0, 0]
    skipped = narrate(Captions(TEXTS, ("ok", "flagged", "failed")), flagged="skip")
    assert skipped["coverage"].tolist() == [1, 0, 0, 0]
    assert skipped.facts["used"] == 1
    assert skipped.texts["paragraph"] == ["0: A red square."]


def test_a_caption_without_words_counts_as_missing() -> None:
    row = narrate(Captions(("A red square.", " \n", "..."), ("ok", "flagged", "flagged")))
    assert row["coverage"].tolist() == [1, 0, 0, 0]
    assert row.facts == {
        "captions": 3,
        "used": 1,
        "truncated": 0,
        "clips": 4,
        "covered_clips": 1,
    }


def test_a_video_without_any_usable_caption_has_a_narrative_of_zeros() -> None:
    row = narrate(Captions(TEXTS, ("failed", "failed", "failed")))
    assert not row["narrative"].any()
    assert row["narrative"].shape == (4, 64)
    assert row["coverage"].tolist() == [0, 0, 0, 0]


def test_encoder_and_policy_change_the_recipe_and_leave_that_of_captions_alone() -> None:
    ids = {
        NarrativesStage(StageContext(1.0), NarrativesOptions(**options))
        .recipe({"captions": "0" * 16})
        .id
        for options in ({}, {"fill": "zero"}, {"flagged": "skip"}, {"encoder": "hash"}, {"seed": 1})
    }
    assert len(ids) == 5
    assert NarrativesStage.reads == ("captions",)
