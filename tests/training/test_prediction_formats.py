"""Formats of prediction files: what one tool wrote means the same in the format of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from data.annotations import load_annotations
from data.annotations.types import Annotation
from data.errors import UsageError
from training.cli import app
from training.predictions import (
    FORMATS,
    WRITERS,
    Prediction,
    format_of,
    read_predictions,
    retyped,
    rounded,
    unsorted,
    write_predictions,
)

QUERIES = [
    Annotation(1, "A ball rolls.", "v1", 20.0, ((0.0, 4.0),)),
    Annotation(2, " A ball rolls!", "v1", 20.0, ((6.004, 9.0),)),
    Annotation(3, "It's a dog", "v2", 30.0, ((1.0, 2.0),)),
]

ANSWERS = [
    Prediction(1, "A ball rolls.", "v1", ((0.0, 3.123456, 0.9), (5.0, 6.0, 0.1))),
    Prediction(2, " A ball rolls!", "v1", ((6.0, 9.0, 0.8),)),
    Prediction(3, "It's a dog", "v2", ((1.0, 2.5, 0.25),)),
]


def entry(sentence: str, start: float, **more: Any) -> dict[str, Any]:
    return {"sentence": sentence, "timestamp": [start, start + 1], "score": 0.5, **more}


def tsg_file(tmp_path: Path, **videos: list[dict[str, Any]]) -> Path:
    path = tmp_path / "tsg.json"
    path.write_text(json.dumps({"version": "V0", "results": videos}))
    return path


def written(path: Path, name: str, answers: list[Prediction]) -> Path:
    path.write_text("\n".join(WRITERS.get(name).lines(answers, QUERIES)))
    return path


def convert(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["convert", *(str(each) for each in arguments)])


@pytest.mark.parametrize("name", ["submission", "tsg"])
def test_windows_come_back_from_every_format_that_has_room_for_them(
    tmp_path: Path, name: str
) -> None:
    path = written(tmp_path / "file", name, ANSWERS)
    assert format_of(path).name == name
    assert read_predictions(path, QUERIES) == [rounded(each) for each in ANSWERS]


@pytest.mark.parametrize("name", ["submission", "scores"])
def test_saliency_comes_back_from_every_format_that_has_room_for_it(
    tmp_path: Path, name: str
) -> None:
    answers = [
        Prediction(each.qid, each.query, each.video_id, (), (0.12345, -1.0)) for each in QUERIES
    ]
    path = written(tmp_path / "file", name, answers)
    assert format_of(path).name == name
    assert read_predictions(path, QUERIES) == [rounded(each) for each in answers]


def test_a_file_of_highlights_only_has_no_field_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    answers = [Prediction("v", "q", "v", (), (0.5,))]
    write_predictions(path, answers)
    assert json.loads(path.read_text()).keys() == {"qid", "query", "vid", "pred_saliency_scores"}
    assert read_predictions(path) == answers


def test_a_query_without_any_window_stays_among_others_with_some(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    answers = [Prediction(1, "q", "v", ()), Prediction(2, "q", "v", ((0.0, 1.0, 0.5),))]
    write_predictions(path, answers)
    assert json.loads(path.read_text().splitlines()[0])["pred_relevant_windows"] == []
    assert read_predictions(path) == answers


def test_numbers_that_no_reader_takes_are_not_written(tmp_path: Path) -> None:
    answers = [ANSWERS[0], Prediction(2, "q", "v", ((0.0, float("nan"), 0.5),))]
    with pytest.raises(UsageError, match="query 2: the predicted numbers are not finite"):
        write_predictions(tmp_path / "p.jsonl", answers)
    assert not (tmp_path / "p.jsonl").exists()


def test_rows_of_r2_tuning_without_a_query_are_read(tmp_path: Path) -> None:
    # tools/launch.py and datasets/grounding.py of yeliudev/R2-Tuning: vid first, no query
    path = tmp_path / "hl_val_submission.jsonl"
    path.write_text(
        '{"vid": "v", "qid": 3, "pred_relevant_windows": [[0.1, 2, 0.5], [1, 2, 0.0]], '
        '"pred_saliency_scores": [0.5]}\n'
    )
    windows = ((0.1, 2.0, 0.5), (1.0, 2.0, 0.0))
    assert read_predictions(path) == [Prediction(3, "", "v", windows, (0.5,))]


def test_highlights_of_univtg_are_found_by_video(tmp_path: Path) -> None:
    # main/dataset.py of showlab/UniVTG
    path = tmp_path / "BK.jsonl"
    path.write_text('{"vid": "v2", "pred": [0.5, 1], "gt": [0, 1], "domain": "BK", "fps": 30}\n')
    assert format_of(path).name == "univtg_hl"
    assert read_predictions(path) == [Prediction("v2", "", "v2", (), (0.5, 1.0))]
    found = read_predictions(path, [Annotation(7, "title", "v2")])
    assert found == [Prediction(7, "title", "v2", (), (0.5, 1.0))]
    with pytest.raises(UsageError, match=r"asks? 3 queries about 2 videos"):
        read_predictions(path, QUERIES)


def test_windows_without_scores_are_ranked_as_listed_when_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"qid": 1, "pred_relevant_windows": [[5, 6], [0, 4]]}\n')
    with pytest.raises(UsageError, match="name the format `unscored`"):
        read_predictions(path)
    (found,) = read_predictions(path, format="unscored")
    assert found.windows == ((5.0, 6.0, 1.0), (0.0, 4.0, 0.5))
    assert unsorted([found]) == []


def test_scores_written_over_several_lines_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"v": [0.1, 0.2]}, indent=2))
    assert read_predictions(path) == [Prediction("v", "", "", (), (0.1, 0.2))]


def test_sentences_are_found_by_their_letters(tmp_path: Path) -> None:
    path = tsg_file(
        tmp_path,
        v2=[entry("its a dog", 1)],
        v1=[entry("a ball rolls", 2), entry("a ball rolls", 3)],
    )
    found = read_predictions(path, QUERIES)
    assert [(each.qid, each.windows[0][0]) for each in found] == [(1, 2.0), (2, 3.0), (3, 1.0)]


def test_the_same_sentence_twice_is_told_apart_by_its_moment(tmp_path: Path) -> None:
    path = tsg_file(
        tmp_path,
        v1=[
            # the ground truth of such files is float32, or has two decimals
            entry("a ball rolls", 2, gt_timestamp=[6.0, 9.000000381469727]),
            entry("a ball rolls", 3, gt_timestamp=[0.0, 4.0]),
        ],
        v2=[entry("It's a dog", 1)],
    )
    found = read_predictions(path, QUERIES)
    assert [(each.qid, each.windows[0][0]) for each in found] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_a_third_answer_to_two_queries_is_an_error(tmp_path: Path) -> None:
    path = tsg_file(tmp_path, v1=[entry("a ball rolls", start) for start in (1, 2, 3)])
    with pytest.raises(UsageError, match="1 answer no query of the annotations that is not answ"):
        read_predictions(path, QUERIES)


def test_a_tsg_file_needs_its_annotations(tmp_path: Path) -> None:
    path = tsg_file(tmp_path, v1=[entry("a ball rolls", 1)])
    with pytest.raises(UsageError, match=r"no query ids .* give --annotations FILE and --dataset"):
        read_predictions(path)
    result = convert(path, "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert not (tmp_path / "out.jsonl").exists()


def test_published_predictions_go_to_a_submission_and_back(tmp_path: Path, shared: Path) -> None:
    published = shared / "predictions/shuffling_charades_cd_ood/predictions.json"
    truth = shared / "annotations/charades_cd/charades_test_ood.json"
    known = ["--annotations", truth, "--dataset", "charades_cd"]
    there, back = tmp_path / "there.jsonl", tmp_path / "back.json"
    result = convert(published, "--out", there, *known)
    assert result.exit_code == 0, result.output
    assert "3375 predictions of format 'tsg' are in" in result.output
    assert convert(there, "--to", "tsg", "--out", back, *known).exit_code == 0
    before, after = (json.loads(path.read_text())["results"] for path in (published, back))
    assert before.keys() == after.keys()
    for video, entries in before.items():
        for one, other in zip(entries, after[video], strict=True):
            assert other["timestamp"] == [round(edge, 4) for edge in one["timestamp"]]
            assert other["gt_timestamp"] == pytest.approx(one["gt_timestamp"], abs=0.01)
            assert other["score"] == round(one["score"], 4)
    rows = load_annotations("charades_cd", truth)
    assert read_predictions(back, rows) == read_predictions(there, rows)


@pytest.fixture
def val(tmp_path: Path) -> list[Any]:
    """Options that name the annotations of three queries with numbers as ids."""
    path = tmp_path / "val.jsonl"
    rows = [
        {
            "qid": each.qid,
            "query": each.query,
            "vid": each.video_id,
            "duration": each.duration_s,
            "relevant_windows": each.windows,
        }
        for each in QUERIES
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--annotations", path, "--dataset", "qvhighlights"]


def test_convert_gives_ids_the_type_of_the_annotations_and_says_so(
    tmp_path: Path, val: list[Any]
) -> None:
    rows = [{"qid": str(each.qid), "pred_relevant_windows": each.windows} for each in ANSWERS]
    path, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    result = convert(path, "--out", out, *val)
    assert result.exit_code == 0, result.output
    assert "3 ids have the type of the annotations now: 3" in result.output
    assert [each.qid for each in read_predictions(out)] == [1, 2, 3]


def test_convert_says_what_the_other_format_has_no_room_for(tmp_path: Path, val: list[Any]) -> None:
    both = [
        Prediction(each.qid, each.query, each.video_id, each.windows, (1.0, 2.0))
        for each in ANSWERS
    ]
    path = written(tmp_path / "p.jsonl", "submission", both)
    for name, lost in (("scores", "windows"), ("tsg", "saliency")):
        result = convert(path, "--to", name, "--out", tmp_path / name, *val)
        assert result.exit_code == 0, result.output
        assert f"format '{name}' has no room for the {lost} of 3 predictions" in result.output


def test_convert_writes_nothing_where_nothing_would_be_left(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", "submission", ANSWERS)
    result = convert(path, "--to", "scores", "--out", tmp_path / "out.json")
    assert result.exit_code == 2
    assert "3 of 3 predictions have nothing that the format 'scores' holds" in result.stderr
    assert not (tmp_path / "out.json").exists()


def test_convert_tells_of_windows_that_are_not_listed_best_first(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"qid": 1, "pred_relevant_windows": [[0, 1, 0.1], [2, 3, 0.9]]}\n')
    result = convert(path, "--out", tmp_path / "out.jsonl")
    assert "stays as it is: 1 of 1 queries do not list their best window first (qid 1)" in (
        result.output
    )
    assert read_predictions(tmp_path / "out.jsonl")[0].windows[0] == (0.0, 1.0, 0.1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--to", "csv"], "unknown prediction format to write 'csv'; allowed: scores, submission"),
        (["--to", "univtg_hl"], "unknown prediction format to write 'univtg_hl'"),
        (["--from", "moment_detr"], "unknown prediction format 'moment_detr'"),
        (["--to", "tsg"], "the format 'tsg' holds the ground truth too; give --annotations FILE"),
        (["--dataset", "qvhighlights"], "needs --annotations FILE and --dataset NAME together"),
    ],
)
def test_convert_refuses_what_it_cannot_do(tmp_path: Path, options: list[str], told: str) -> None:
    path = written(tmp_path / "p.jsonl", "submission", ANSWERS)
    result = convert(path, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "out").exists()


def test_convert_does_not_write_over_the_file_that_it_reads(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", "submission", ANSWERS)
    before = path.read_bytes()
    result = convert(path, "--out", path)
    assert result.exit_code == 2
    assert "is the file to convert; name another" in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("query", "answer", "told"),
    [
        (Annotation(1, "q", "v", windows=((0, 1), (2, 3))), ANSWERS[0], "2 true moments"),
        (Annotation(1, "q", "v1", windows=((0, 1),)), Prediction(1, "q", "v1", ()), "no predicted"),
    ],
)
def test_what_an_entry_of_tsg_cannot_say_is_refused(
    query: Annotation, answer: Prediction, told: str
) -> None:
    answer = Prediction(1, "q", query.video_id, answer.windows)
    with pytest.raises(UsageError, match=told):
        list(WRITERS.get("tsg").lines([answer], [query]))


def test_ids_that_differ_in_type_only_are_no_keys_of_one_object(tmp_path: Path) -> None:
    alike = [Prediction(1, "q", "v", (), (0.1,)), Prediction("1", "q", "v", (), (0.2,))]
    with pytest.raises(UsageError, match="two of these would be equal; write 'submission'"):
        list(WRITERS.get("scores").lines(alike, None))
    queries = [Annotation(1, "q", "v"), Annotation("1", "q", "v")]
    path = tmp_path / "scores.json"
    path.write_text('{"1": [0.1]}')
    with pytest.raises(UsageError, match="cannot tell them apart"):
        read_predictions(path, queries)
    assert retyped(queries, alike) == (alike, 0)


def test_at_most_one_format_recognises_a_file(tmp_path: Path) -> None:
    answers = [Prediction(1, "A ball rolls.", "v1", ((0.0, 1.0, 0.5),), (0.5,))]
    queries = QUERIES[:1]
    for name in WRITERS:
        text = "".join(WRITERS.get(name).lines(answers, queries))
        for each in (text, json.dumps(json.loads(text), indent=1)):
            path = tmp_path / name
            path.write_text(each)
            assert format_of(path).name == name
    assert {*WRITERS} <= {*FORMATS}
