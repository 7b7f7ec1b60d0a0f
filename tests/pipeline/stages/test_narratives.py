from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import InputError, UsageError
from data.grid import Grid
from data.interop.captions import caption_line
from data.store.types import ItemKey, Row
from models.word_tables import table_bytes
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
    stage = NarrativesStage(StageContext(1.0), NarrativesOptions(**{"encoder": "hash"} | options))
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
        "words": 3,
        "unknown_words": 0,
        "clips": 4,
        "covered_clips": 1,
    }


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    """Vectors of `a`, `red`, `square`; looked up in vain: user, blue, star, moves."""
    vectors = np.eye(3, dtype=np.float16)
    blobs = {"words": b"a\nred\nsquare", "unknown": b"user\nblue\nstar\nmoves"}
    (tmp_path / "glove.safetensors").write_bytes(table_bytes("glove", vectors, blobs))
    return tmp_path / "glove.safetensors"


def test_a_caption_is_the_mean_of_its_known_words_and_the_others_are_counted(glove: Path) -> None:
    row = narrate(Captions(TEXTS, ("ok", "ok", "ok")), encoder="glove", checkpoint=glove)
    third = np.full(3, 1 / 3, np.float16)
    np.testing.assert_array_equal(row["narrative"][:2], [third, third])
    np.testing.assert_array_equal(row["narrative"][2], [1, 0, 0])  # a, of "A blue star moves."
    assert (row.facts["words"], row.facts["unknown_words"]) == (7, 4)


def test_a_caption_of_unknown_words_alone_counts_as_missing(glove: Path) -> None:
    texts = ("A red square.", "Blue star.", "Blue!")
    row = narrate(Captions(texts, ("ok", "ok", "ok")), encoder="glove", checkpoint=glove)
    assert row["coverage"].tolist() == [1, 0, 0, 0]
    assert row.facts["used"] == 1
    np.testing.assert_array_equal(row["narrative"][3], row["narrative"][0])  # filled, not zeros


def test_captions_with_words_that_nobody_looked_up_are_refused_with_what_to_do(
    glove: Path,
) -> None:
    texts = ("A red square.", "A green square.", "A square.")
    with pytest.raises(InputError, match="--words-from") as raised:
        narrate(Captions(texts, ("ok", "ok", "ok")), encoder="glove", checkpoint=glove)
    assert raised.value.reason == "words-not-looked-up"


def test_a_table_that_is_missing_or_of_another_encoder_is_told_before_anything_runs(
    glove: Path,
) -> None:
    for options, problem in (
        ({"encoder": "glove"}, "pipeline weights glove"),
        ({"encoder": "llama_embedding", "checkpoint": glove}, "say `encoder: glove`"),
        ({"encoder": "glvoe"}, "did you mean 'glove'"),
        ({"encoder": "glove", "checkpoint": glove, "options": {"unknwon": 1}}, "'unknown'"),
    ):
        stage = NarrativesStage(StageContext(1.0), NarrativesOptions(**options))
        with pytest.raises(UsageError, match=problem):
            stage.recipe({"captions": "0" * 16})


def test_dimensions_are_those_of_the_table_whatever_the_preset(glove: Path) -> None:
    recipes = [
        NarrativesStage(
            StageContext(1.0), NarrativesOptions(encoder="glove", checkpoint=glove, preset=preset)
        ).recipe({"captions": "0" * 16})
        for preset in ("tiny", "full")
    ]
    assert recipes[0].id == recipes[1].id
    assert recipes[0].schema.arrays["narrative"].shape == (3,)


def test_lines_of_a_paragraph_keep_milliseconds_late_in_a_long_video() -> None:
    assert caption_line(12345.678, " A  dog\nruns. ") == "12345.678: A dog runs."
    assert caption_line(7200.0, "A dog.") == "7200: A dog."


class Spans(Captions):
    """Two captions: of the first two seconds and a half, and at 3 s."""

    def __init__(self, first: str = '{"status": "ok", "end_s": 2.5}') -> None:
        arrays = {"time_s": np.array([0.0, 3.0])}
        texts = {"caption": list(TEXTS[:2]), "record": [first, '{"status": "ok"}']}
        self._row = Row(KEY, GRID, arrays, texts)


def test_a_caption_with_an_end_counts_for_every_clip_that_it_touches() -> None:
    row = narrate(Spans())
    assert row["coverage"].tolist() == [1, 1, 1, 1]
    assert len({vector.tobytes() for vector in row["narrative"]}) == 2
    np.testing.assert_array_equal(row["narrative"][2], row["narrative"][0])
    assert row.texts["paragraph"] == ["0: A red square.", "3: USER: a red square"]
    assert narrate(Spans(), spans="ignore")["coverage"].tolist() == [1, 0, 0, 1]


def test_an_end_beyond_every_video_is_the_end_of_this_one() -> None:
    row = narrate(Spans('{"status": "ok", "end_s": 1e300}'))
    assert row["coverage"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "record",
    ["", "[]", "{}", '{"status": "fine"}', '{"status": "ok", "end_s": "late"}', '{"status": NaN}'],
)
def test_a_record_that_is_none_sends_its_video_to_quarantine(record: str) -> None:
    with pytest.raises(InputError, match="caption this video again") as raised:
        narrate(Spans(record))
    assert raised.value.reason == "caption-record"


def test_records_of_the_first_version_are_read() -> None:
    # What stage `captions` version 1 wrote (before 4f78394).
    first = {"status": "ok", "finish_reason": "stop", "flags": [], "attempts": 1, "prompt": "tea",
             "instruction": 0, "prompt_tokens": 0, "new_tokens": 3}  # fmt: skip
    assert narrate(Spans(json.dumps(first)))["coverage"].tolist() == [1, 0, 0, 1]


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
        for options in (
            {},
            {"fill": "zero"},
            {"flagged": "skip"},
            {"spans": "ignore"},
            {"encoder": "hash"},
            {"seed": 1},
            {"keep_punct": True},
        )
    }
    assert len(ids) == 7
    assert NarrativesStage.reads == ("captions",)
