from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from data.annotations import (
    DATASETS,
    Annotation,
    PostProcessing,
    dataset_of,
    load_annotations,
    read_jsonl,
    save_jsonl,
)
from data.errors import StoreError, UsageError

ROW: dict[str, Any] = {
    "qid": 1,
    "query": "A red ball rolls.",
    "duration": 12,
    "vid": "v_0.0_12.0",
    "relevant_windows": [[0, 4], [6, 8]],
    "relevant_clip_ids": [0, 1, 3],
    "saliency_scores": [[4, 3, 2], [1, 1, 1], [0, 2, 4]],
}


def _file(tmp_path: Path, *rows: dict[str, Any] | str) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def _query(**changes: Any) -> dict[str, Any]:
    return {**ROW, **changes}


def _without(*names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in _query(**changes).items() if name not in names}


@pytest.mark.parametrize(
    ("split", "rows", "with_truth"),
    [("train", 7218, True), ("val", 1550, True), ("test", 1542, False)],
)
def test_the_real_files_have_the_published_numbers_of_rows(
    split: str, rows: int, with_truth: bool, shared: Path
) -> None:
    path = shared / f"annotations/qvhighlights/highlight_{split}_release.jsonl"
    found = load_annotations("qvhighlights", path)
    assert len(found) == rows  # specs/peers_formats_metrics.md §3.1
    assert all(120 <= (row.duration_s or 0) <= 150 for row in found)
    assert all((row.windows is not None) == with_truth for row in found)
    for row in found:
        cells = {int(t) // 2 for a, b in row.windows or () for t in range(int(a), int(b), 2)}
        assert set(row.clip_ids or ()) == cells
        assert all(len(scores) == 3 for scores in row.saliency or ())


def test_the_test_file_with_ground_truth_has_the_same_queries_in_the_same_order(
    shared: Path,
) -> None:
    folder = shared / "annotations/qvhighlights"
    blind = load_annotations("qvhighlights", folder / "highlight_test_release.jsonl")
    truth = load_annotations("qvhighlights", folder / "highlight_test_with_gt.jsonl")
    assert [(row.qid, row.query, row.video_id) for row in blind] == [
        (row.qid, row.query, row.video_id) for row in truth
    ]
    assert all(row.windows for row in truth)


def test_the_real_validation_file_survives_a_round_trip(shared: Path, tmp_path: Path) -> None:
    path = shared / "annotations/qvhighlights/highlight_val_release.jsonl"
    rows = load_annotations("qvhighlights", path)
    save_jsonl(rows, tmp_path / "val.jsonl")
    assert load_annotations("qvhighlights", tmp_path / "val.jsonl") == rows
    [first] = [json.loads(line) for line in path.read_text().splitlines()[:1]]
    assert json.loads((tmp_path / "val.jsonl").read_text().splitlines()[0]) == first


def test_a_row_is_read_into_the_normal_form(tmp_path: Path) -> None:
    path = _file(tmp_path, _query(source="here"), "", _query(qid="s1-d2"))
    first, second = load_annotations("qvhighlights", path)
    assert first == Annotation(
        qid=1,
        query="A red ball rolls.",
        video_id="v_0.0_12.0",
        duration_s=12.0,
        windows=((0.0, 4.0), (6.0, 8.0)),
        clip_ids=(0, 1, 3),
        saliency=((4.0, 3.0, 2.0), (1.0, 1.0, 1.0), (0.0, 2.0, 4.0)),
        extra={"source": "here"},
    )
    assert second.qid == "s1-d2"


def test_moments_without_saliency_are_enough(tmp_path: Path) -> None:
    path = _file(tmp_path, _without("relevant_clip_ids", "saliency_scores"))
    [row] = load_annotations("qvhighlights", path)
    assert (row.windows, row.clip_ids, row.saliency) == (((0.0, 4.0), (6.0, 8.0)), None, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (json.dumps(ROW)[:-20], "not JSON that can be used.*; expected one whole JSON object"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ("[" * 100_000, "not JSON that can be used"),
        (json.dumps(ROW).replace("[0, 4]", "[NaN, 4]"), "NaN is not a number"),
        (json.dumps(ROW).replace("[0, 4]", "[0, Infinity]"), "Infinity is not a number"),
        (json.dumps(ROW).replace("[0, 4]", "[0, 1e999]"), "is not a number that can be used"),
        (json.dumps(ROW).replace("[0, 4]", "[-1e30, 4]"), "must hold finite numbers below 1e.30"),
        (_without("qid"), "lacks 'qid'"),
        (_without("query", "vid"), "lacks 'query', 'vid'"),
        (_without("duration"), "lacks 'duration'"),
        (_without("relevant_clip_ids"), "lacks 'relevant_clip_ids'"),
        (_without("saliency_scores"), "lacks 'saliency_scores'"),
        (_without("relevant_windows"), "has saliency but lacks 'relevant_windows'"),
        (
            _without("relevant_clip_ids", "saliency_scores"),
            r"has \['windows'\], the rows before have \['clip_ids', 'saliency', 'windows'\]",
        ),
        (
            _without("relevant_windows", "relevant_clip_ids", "saliency_scores"),
            "has no ground truth, the rows before have",
        ),
        (_query(qid=0), r"qid 0 came before, in .*rows\.jsonl, line 1"),
        (_query(qid=True), "'qid' must be a whole number or a string"),
        (_query(qid=1.5), "'qid' must be a whole number or a string"),
        (_query(query="  "), "'query' must be a sentence"),
        (_query(query=7), "'query' must be a sentence"),
        (_query(vid=7), "'vid' must be a string"),
        (_query(vid="../../etc/passwd"), r"video id '\.\./\.\./etc/passwd' is not allowed"),
        (_query(duration=0), "'duration' must be above 0"),
        (_query(duration="12"), "'duration' must hold numbers"),
        (_query(duration=True), "'duration' must hold numbers"),
        (_query(duration=10**400), "has more than 19 digits"),
        (_query(relevant_windows=[[1, 2, 3]]), r"holds \[1, 2, 3\], not \[start, end\]"),
        (_query(relevant_windows=[3]), r"holds 3, not \[start, end\]"),
        (_query(relevant_windows={"0": 4}), "'relevant_windows' must be a list"),
        (_query(relevant_windows=[]), "'relevant_windows' is empty"),
        (_query(relevant_clip_ids=[0, 1, 1]), "must be different whole numbers"),
        (_query(relevant_clip_ids=[0, 1, -1]), "must be different whole numbers"),
        (_query(relevant_clip_ids=[0, 1]), "each of the 2 clips"),
        (_query(saliency_scores=[[1], [1, 2], [3]]), r"3 rows of \[1, 2\]"),
        (_query(saliency_scores=[[], [], []]), r"3 rows of \[0\]"),
        (_query(saliency_scores=[[1], ["2"], [3]]), "'saliency_scores' must hold numbers"),
    ],
)
def test_a_wrong_row_is_refused_with_file_and_line(
    row: dict[str, Any] | str, message: str, tmp_path: Path
) -> None:
    path = _file(tmp_path, _query(qid=0), "", row)
    with pytest.raises(UsageError, match=rf"rows\.jsonl, line 3.*{message}"):
        load_annotations("qvhighlights", path)


def test_moments_that_nobody_can_use_are_read_as_the_file_has_them(tmp_path: Path) -> None:
    path = _file(tmp_path, _query(relevant_windows=[[4, 0], [4, 4], [-1, 400]]))
    [row] = load_annotations("qvhighlights", path)
    assert row.windows == ((4.0, 0.0), (4.0, 4.0), (-1.0, 400.0))


def test_a_wrong_row_spoils_no_other(tmp_path: Path) -> None:
    path = _file(tmp_path, _query(qid=0), "{", _query(qid=True), _query(qid=1))
    first, *wrong, last = DATASETS.get("qvhighlights").records(path)
    assert (first.annotation().qid, last.annotation().qid) == (0, 1)
    assert [record.where for record in wrong] == [f"{path}, line 2", f"{path}, line 3"]
    for record in wrong:
        with pytest.raises(UsageError, match="^" + re.escape(record.where)):
            record.annotation()


def test_saliency_without_moments_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, _without("relevant_windows"))
    with pytest.raises(UsageError, match="line 1: has saliency but lacks 'relevant_windows'"):
        load_annotations("qvhighlights", path)


def test_files_without_rows_and_no_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hold no rows"):
        load_annotations("qvhighlights", _file(tmp_path, ""))
    with pytest.raises(UsageError, match=r"none\.jsonl': it does not exist"):
        load_annotations("qvhighlights", tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xff\x00")
    with pytest.raises(UsageError, match=r"binary\.jsonl, line 1"):
        load_annotations("qvhighlights", tmp_path / "binary.jsonl")


def test_an_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown dataset 'qvhighlight'; did you mean 'qvhighl"):
        load_annotations("qvhighlight", Path("x"))


def test_rows_that_say_little_survive_a_round_trip(tmp_path: Path) -> None:
    rows = [
        Annotation("a", "Grüße 日本", "v1"),
        Annotation(2, "q", "v2", 0.5, (), (), (), extra={"label": [[1, 2]], "domain": "BK"}),
        Annotation(3, "q", "v3", 9.0, None, (0, 4), ((1.0,), (0.0,)), ((0.0, 3.5), (1.5, 9.25))),
    ]
    save_jsonl(rows, tmp_path / "deep" / "rows.jsonl")
    assert read_jsonl(tmp_path / "deep" / "rows.jsonl") == rows


def test_a_save_that_fails_leaves_the_old_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    save_jsonl([Annotation(1, "old", "v")], path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "read-only")))
        with pytest.raises(StoreError, match="cannot write"):
            save_jsonl([Annotation(1, "new", "v")], path)
    assert [row.query for row in read_jsonl(path)] == ["old"]


def test_qvhighlights_states_its_grid_and_post_processing(tmp_path: Path) -> None:
    dataset = DATASETS.get("qvhighlights")
    assert dataset.clip_len_s == dataset.clip_len_at(tmp_path) == 2.0
    assert dataset.post == PostProcessing(clamp_s=(0.0, 150.0), round_to_s=2.0)


def test_the_clip_length_of_a_synthetic_corpus_stands_beside_its_annotations(
    tmp_path: Path,
) -> None:
    dataset = DATASETS.get("synthetic")
    path = tmp_path / "annotations" / "val.jsonl"
    path.parent.mkdir()
    with pytest.raises(UsageError, match=r"no dataset\.json at"):
        dataset.clip_len_at(path)
    place = path.parent / "dataset.json"
    place.write_text('{"clip_len_s": 1.5}')
    for asked in (path, path.parent, tmp_path):
        assert dataset.clip_len_at(asked) == 1.5
    assert dataset.clip_len_s is None
    numbers = [f'{{"clip_len_s": {each}}}' for each in ("-1", "0", "1e-9", "null")]
    for wrong in ("{", "{}", "[]", *numbers):
        place.write_text(wrong)
        with pytest.raises(UsageError, match=r"dataset\.json.*'clip_len_s'"):
            dataset.clip_len_at(path)


def test_a_synthetic_file_has_the_same_rows(tmp_path: Path) -> None:
    path = _file(tmp_path, ROW)
    assert load_annotations("synthetic", path) == load_annotations("qvhighlights", path)


def test_a_name_of_ones_own_is_the_custom_dataset_with_clips_of_two_seconds_or_as_stated(
    tmp_path: Path,
) -> None:
    custom = dataset_of("kitchen")
    assert (custom.name, dataset_of("qvhighlights").name) == ("custom", "qvhighlights")
    assert custom.clip_len_at(tmp_path / "train.jsonl") == 2.0
    (tmp_path / "dataset.json").write_text('{"clip_len_s": 0.5}')
    assert custom.clip_len_at(tmp_path / "train.jsonl") == 0.5
