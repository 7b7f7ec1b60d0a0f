"""Reading and writing submissions: exact, or refused with the line at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.annotations.types import Annotation
from data.errors import UsageError
from training.predictions import Prediction, in_order, read_predictions, rounded, write_predictions

GOOD = {"qid": 3, "query": "a dog", "vid": "v", "pred_relevant_windows": [[0, 2.5, 0.9]]}


def line(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


def answer(qid: int | str, video_id: str = "v") -> Prediction:
    return Prediction(qid, "q", video_id, ((0.0, 1.0, 1.0),))


def test_written_predictions_read_back_with_four_decimals(tmp_path: Path) -> None:
    exact = Prediction("a/1", "é", "v", ((0.00004, 12.345678, 1 / 3),), (-1.23456789, 2.0))
    path = tmp_path / "deep" / "p.jsonl"
    write_predictions(path, [exact])
    assert read_predictions(path) == [rounded(exact)]
    assert rounded(exact).windows == ((0.0, 12.3457, 0.3333),)
    assert json.loads(path.read_text())["pred_saliency_scores"] == [-1.2346, 2.0]


def test_saliency_is_left_out_of_the_line_of_a_model_without_it(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.jsonl", [answer(1)])
    assert "pred_saliency_scores" not in (tmp_path / "p.jsonl").read_text()
    assert read_predictions(tmp_path / "p.jsonl")[0].saliency is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"qid": 3, "pred_rel', r"line 2 is not JSON that can be used: Unterminated string"),
        ("[" * 100_000, r"line 2 is not JSON that can be used: it is nested deeper"),
        (line(pred_relevant_windows=[[0, 10**400, 1]]), r"line 2 .* has more than 19 digits"),
        ("[]", r"line 2: expected a JSON object, found a list"),
        ("null", r"line 2: expected a JSON object, found null"),
        ('{"qid": "', r"Unterminated string starting at character 9; expected one whole object"),
        ('{"qid": 3}', r"line 2 has no 'pred_relevant_windows'; its keys are qid"),
        (line(qid=1.5), r"line 2: 'qid' must be a whole number or a string, got 1\.5"),
        (line(pred_relevant_windows=[[0, 1]]), r"must be a list of \[start_s, end_s, score\], got"),
        (line(pred_relevant_windows=[[0, 1, "x"]]), r"must be a list of \[start_s, end_s, score\]"),
        (line(pred_relevant_windows=[[0, float("nan"), 1]]), r"line 2 .* NaN is not a number"),
        (line(pred_relevant_windows=[[0, float("inf"), 1]]), r"line 2 .* Infinity is not a number"),
        (line(pred_relevant_windows=[["0", "1", "1"]]), r"line 2: .* found something else"),
        (line(pred_relevant_windows=[[0, 1, 1], [2]]), r"line 2: .* rows of uneven length"),
        (line(pred_saliency_scores=[]), r"line 2: 'pred_saliency_scores' is empty; leave it out"),
        (line(pred_saliency_scores=[[1]]), r"line 2: 'pred_saliency_scores' must be a list of"),
        ("\udcff", r"line 2 is not JSON that can be used"),
        (
            '{"qid": 1, "x": "' + "a" * (9 << 20) + '"}',
            r"line 2 is longer than the 8,388,608 bytes",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_a_bad_line_is_named_with_what_was_expected(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes((line() + "\n" + text + "\n").encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=message):
        read_predictions(path)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the predictions .*none.* does not exist"):
        read_predictions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UsageError, match="holds no predictions"):
        read_predictions(tmp_path / "empty.jsonl")


def test_predictions_come_in_the_order_of_the_annotations() -> None:
    rows = [Annotation(qid, "q", "v") for qid in (2, "1", 1)]
    found = in_order(rows, [answer(1), answer("1"), answer(2)])
    assert [each.qid for each in found] == [2, "1", 1]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([answer(1)], r"of 2 queries, 1 are missing from the predictions \(qid 2\)"),
        ([answer(1), answer(2), answer(9)], r"1 are in the predictions but not .* \(qid 9\)"),
        ([answer(1), answer(2), answer(2)], r"1 are answered more than once \(qid 2\)"),
        ([answer(1), answer(2, "w")], r"1 are about another video .* \(qid 2\)"),
        (
            [answer("1"), answer("2")],
            r"2 are missing .* \(qid 1, qid 2\); 2 are in the predictions",
        ),
    ],
)
def test_a_part_of_the_queries_is_never_scored(answers: list[Prediction], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        in_order([Annotation(1, "q", "v"), Annotation(2, "q", "v")], answers)


def test_beside_the_right_video_a_sentence_in_other_spelling_is_no_other_query() -> None:
    row = Annotation(1, "A dog runs.", "v", 10.0)
    answer = Prediction(1, "the dog is running", "v", ((0.0, 2.0, 1.0),))
    assert in_order([row], [answer]) == [answer]
