"""Predictions that cannot be scored, as a user meets them: a sentence, exit code 2, no score.

The sentence names the file, the line or entry, what was found and what was expected.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from training.cli import app
from training.predictions import read_predictions
from training.predictions.base import glance

ROWS = [
    {
        "qid": qid,
        "query": f"a ball rolls {qid} times",
        "vid": f"video_{qid}",
        "duration": 8,
        "relevant_windows": [[0, 4]],
        "relevant_clip_ids": [0, 1],
        "saliency_scores": [[4, 3, 2], [1, 1, 1]],
    }
    for qid in (1, 2, 3)
]


def right(qid: int | str = 1, **changes: Any) -> dict[str, Any]:
    row = {
        "qid": qid,
        "query": f"a ball rolls {qid} times",
        "vid": f"video_{qid}",
        "pred_relevant_windows": [[0.0, 4.0, 0.9]],
        "pred_saliency_scores": [0.5, 0.4, 0.3, 0.2],
    }
    return {name: value for name, value in (row | changes).items() if value is not None}


def lines(*rows: Any) -> bytes:
    return "".join(
        f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows
    ).encode()


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "val.jsonl"
    path.write_bytes(lines(*ROWS))
    return path


def refused(annotations: Path, predictions: Path, *options: str) -> str:
    """The one sentence on stderr; nothing may have been scored."""
    out = annotations.parent / "scores.json"
    command = ["evaluate", "--predictions", predictions, "--annotations", annotations]
    command += ["--dataset", "qvhighlights", "--json", out, *options]
    result = CliRunner().invoke(app, [str(each) for each in command])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert not out.exists()
    assert result.stderr.startswith("trainer: ")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 2_000
    return result.stderr


def test_the_right_file_of_these_tests_is_scored(tmp_path: Path, annotations: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(lines(right(1), right(2), right(3)))
    command = ["evaluate", "--predictions", path, "--annotations", annotations]
    result = CliRunner().invoke(app, [*map(str, command), "--dataset", "qvhighlights"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (json.dumps(right(2))[:40], "is not JSON that can be used: Unterminated string"),
        ('{"qid": 2, "pred_relevant_windows": [[0, 1, 1]]', "is not JSON that can be used: Expec"),
        (right(2, pred_relevant_windows=[[0, float("nan"), 1]]), "NaN is not a number"),
        (right(2, pred_relevant_windows=[[0, float("inf"), 1]]), "Infinity is not a number"),
        (right(2, pred_saliency_scores=[float("-inf")] * 4), "-Infinity is not a number"),
        ('{"qid": 2, "pred_relevant_windows": [[0, 1e999, 1]]}', "1e999 is not a number"),
        (right(1.5), "'qid' must be a whole number or a string, got 1.5"),  # type: ignore[arg-type]
        (right(True), "'qid' must be a whole number or a string, got True"),
        (right(2, vid=7), "'vid' must be a string, got 7"),
        (right(2, query=["a"]), "'query' must be a string, got ['a']"),
        (
            right(2, pred_relevant_windows="0-4"),
            "must be a list of [start_s, end_s, score], got '0",
        ),
        (right(2, pred_relevant_windows=[["0", "4", "1"]]), "found something else"),
        (
            right(2, pred_relevant_windows=[[0, 4]]),
            "without a score; if the windows are listed bes",
        ),
        (right(2, pred_relevant_windows=[[0, 4, 1], [2]]), "got rows of uneven length"),
        (right(2, pred_relevant_windows=[0, 4, 1]), "got shape (3,)"),
        (right(2, pred_relevant_windows=[[0, 4, True]]), "found something else: [[0, 4, True]]"),
        (right(2, pred_relevant_windows=[[0, 1e308, 1]]), "found 1e+30 or more, or no number"),
        (right(2, pred_saliency_scores=[0.5, False]), "found something else: [0.5, False]"),
        (right(2, pred_saliency_scores=None), "has no 'pred_saliency_scores', other than the rows"),
        (right(2, pred_saliency_scores=[]), "'pred_saliency_scores' is empty; leave it out"),
        (right(2, pred_saliency_scores=[[1]]), "'pred_saliency_scores' must be a list of finite"),
        (
            right(2, pred_relevant_windows=None),
            "has no 'pred_relevant_windows', other than the row",
        ),
        ({"query_id": 2, "windows": []}, "has no 'qid'; its keys are query_id, windows; expected"),
        ({"qid": 2}, "has no 'pred_relevant_windows'; its keys are qid; expected"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ('{"qid": 2, "qid": 3}', "key 'qid' is given twice"),
        (right(1), "qid 1 came before, in line 1; every query is answered once"),
        ("{" + '"a": {' * 500, "is not JSON that can be used"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_line_is_named(tmp_path: Path, annotations: Path, second: Any, told: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(lines(right(1), second, right(3)))
    message = refused(annotations, path)
    assert f"{path}, line 2" in message
    assert told in message


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([right(1), right(3)], "of 3 queries, 1 are missing from the predictions (qid 2)"),
        ([right(1), right(2), right(3), right(9)], "1 are in the predictions but not in the ann"),
        (
            [right(7), right(8), right(9)],
            "3 are missing from the predictions (qid 1, qid 2, qid 3)",
        ),
        ([right(1), right(2), right(3, vid="w")], "1 are about another video"),
        ([right(1), right(2), right(3, vid=None, query="a dog")], "1 ask another sentence"),
        (
            [right("1"), right("2"), right("3")],
            "The ids differ in type: the annotations have 1, the predictions '1'. `trainer conv",
        ),
    ],
)
def test_predictions_for_other_queries_are_no_partial_score(
    tmp_path: Path, annotations: Path, rows: list[Any], told: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(lines(*rows))
    message = refused(annotations, path)
    assert f"{path} and the annotations do not match" in message
    assert told in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no predictions; expected one JSON object per line"),
        (b"\n \n\n", "holds no predictions; expected one JSON object per line"),
        (gzip.compress(lines(right(1))), "are compressed (gzip); decompress the file first"),
        (b"PK\x03\x04" + bytes(100), "are compressed (zip); decompress the file first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "are a binary file; expected text"),
        (b"\xff\xfe\xfd", "line 1 is not JSON that can be used: 'utf-8' codec can't decode"),
        (
            b"qid,start,end\n1,0,4\n",
            "line 1 is not JSON that can be used: Expecting value at character 1;",
        ),
        (json.dumps([right(1)]).encode(), "line 1: expected a JSON object, found a list"),
        (json.dumps(right(1), indent=1).encode(), "line 1 is not JSON that can be used"),
    ],
)
def test_a_file_of_another_kind_is_named(
    tmp_path: Path, annotations: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    message = refused(annotations, path)
    assert str(path) in message
    assert told in message


def test_a_file_of_empty_lines_is_not_searched_to_its_end(
    tmp_path: Path, annotations: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n" * 1000 + lines(right(1), right(2), right(3)))
    # what stands far below is not looked for, and is read all the same
    assert glance(path).row is None
    assert len(read_predictions(path)) == 3


def test_hundreds_of_keys_are_not_all_told(tmp_path: Path, annotations: Path) -> None:
    path = tmp_path / "p.jsonl"
    wrong = {f"key {place:03}" * 20: place for place in range(500)}
    for row in (wrong, {"vid": "video_1", **wrong}):
        path.write_bytes(lines(row))
        options = ["--format", "univtg_hl"] if "vid" in row else []
        message = refused(annotations, path, *options)
        assert len(message) < 1000
        assert "more" in message
    path.write_bytes(lines(*(right(qid) for qid in (1, 2, 3))))
    annotations.write_bytes(lines(wrong))
    message = refused(annotations, path)
    assert "lacks 'qid'" in message
    assert len(message) < 1000


def test_answers_to_no_query_are_named_whatever_they_hold(
    tmp_path: Path, annotations: Path
) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"1": [0.1], "2": [0.1], "3": [0.1], "x": [0.1]}))
    assert "1 are in the predictions but not in the annotations (qid x)" in refused(
        annotations, path
    )
    path.write_text(json.dumps({"1": [0.1], "2": [0.1], "3": [0.1], "x": "nothing"}))
    assert "not in the annotations (qid x)" in refused(annotations, path, "--format", "scores")


def test_places_that_are_no_files_are_named(tmp_path: Path, annotations: Path) -> None:
    assert "it is a folder, not a file" in refused(annotations, tmp_path)
    assert "it does not exist" in refused(annotations, tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe")
    assert "it is a pipe, not a file" in refused(annotations, tmp_path / "pipe")


@pytest.mark.parametrize(
    "begin", [b'{"qid": 2, "pred_relevant_windows": [', b'{"results": {"v": [']
)
def test_a_line_of_100_megabytes_is_not_read_whole(
    tmp_path: Path, annotations: Path, begin: bytes
) -> None:
    path = tmp_path / "p.jsonl"
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(100 * 2**20)  # a hole: 100 MB of NUL bytes that take no disk
    message = refused(annotations, path)
    assert "a binary file" in message
    with path.open("wb") as file:
        file.write(begin + b"[0, 4, 1], " * (10 * 2**20))
    message = refused(annotations, path)
    assert "line 1 is longer than the 8,388,608 bytes" in message or "larger than the" in message


@pytest.mark.parametrize(
    ("format", "content", "told"),
    [
        ("tsg", {"version": "V0"}, "'results' must be an object of videos, got None"),
        ("tsg", {"results": {"video_1": {}}}, "video 'video_1': expected a list of"),
        ("tsg", {"results": {"video_1": [3]}}, "video 'video_1', entry 1: expected"),
        (
            "tsg",
            {"results": {"video_1": [{"timestamp": [0, 1]}]}},
            "entry 1: 'sentence' must be a string, got None",
        ),
        (
            "tsg",
            {"results": {"video_1": [{"sentence": "a", "start": 1}]}},
            "entry 1 has no 'timestamp'; its keys are sentence, start; expected",
        ),
        (
            "tsg",
            {"results": {"video_1": [{"sentence": "a", "timestamp": [0, 1, 2]}]}},
            "entry 1: 'timestamp' must be [start_s, end_s], got [0, 1, 2]",
        ),
        (
            "tsg",
            {"results": {"video_1": [{"sentence": "a", "timestamps": [[0, 1]], "scores": [1, 2]}]}},
            "entry 1: 'scores' has 2 numbers for 1 windows",
        ),
        (
            "tsg",
            {"results": {"video_1": [{"sentence": "a", "timestamp": [0, 1]}]}},
            "1 answer no query of the annotations that is not answered already (first: video",
        ),
        (
            "tsg",
            {"results": {"video_1": [{"sentence": "A ball rolls 1 times.", "timestamp": [0, 1]}]}},
            "of 3 queries, 2 are missing from the predictions (qid 2, qid 3)",
        ),
        (
            "tsg",
            {
                "results": {
                    "video_1": [
                        {
                            "sentence": "a ball rolls 1 times",
                            "timestamp": [0, 1],
                            "gt_timestamp": [0, 5],
                        }
                    ]
                }
            },
            "1 have a 'gt_timestamp' that is not the annotated moment (first: video 'video_1': "
            "'a ball rolls 1 times': [0.0, 5.0])",
        ),
        ("scores", {}, "holds no predictions"),
        ("scores", {"1": []}, "entry '1' is empty; expected a list of finite numbers"),
        ("scores", {"1": [0.1], "2": ["x"]}, "entry '2' must be a list of finite numbers"),
        ("univtg_hl", {"vid": "video_1"}, "line 1 has no 'pred'; its keys are vid"),
        ("unscored", right(1), "'pred_relevant_windows' must be a list of [start_s, end_s] in the"),
        (
            "csv",
            right(1),
            "unknown prediction format 'csv'; allowed: scores, submission, tsg, univt",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_files_in_other_formats_are_refused_as_exactly(
    tmp_path: Path, annotations: Path, format: str, content: Any, told: str
) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    assert told in refused(annotations, path, "--format", format)


def test_a_truncated_json_file_is_named(tmp_path: Path, annotations: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"version": "V0", "results": {"video_1": [{"sentence": "a ba')
    assert f"{path} is not JSON that can be used: Unterminated string" in refused(annotations, path)


def test_the_format_goes_with_predictions_only() -> None:
    result = CliRunner().invoke(app, ["evaluate", "--run", "r", "--format", "tsg"])
    assert result.exit_code == 2
    assert "--format goes with --predictions, not with --run" in result.stderr
