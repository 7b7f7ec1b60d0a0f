"""What holds for every dataset, in every form of its files."""

from __future__ import annotations

import codecs
import copy
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from annotation_samples import SAMPLES, FileSample

from data.annotations import DATASETS, guess_dataset, load_annotations, read_jsonl, save_jsonl
from data.errors import UsageError
from data.foreign import LONGEST_LINE
from data.identity import check_id

every_file = pytest.mark.parametrize("sample", SAMPLES, ids=str)
every_dataset = pytest.mark.parametrize("name", DATASETS.names())


@every_dataset
def test_every_dataset_has_a_sample_and_a_place_in_the_documentation(name: str, root: Path) -> None:
    assert name in {sample.dataset for sample in SAMPLES}
    assert f"| `{name}` |" in (root / "docs" / "datasets.md").read_text()


@every_dataset
def test_every_dataset_says_how_it_is_scored(name: str, tmp_path: Path) -> None:
    from training.metrics import METRICS

    dataset = DATASETS.get(name)
    assert dataset.name == name
    assert dataset.metrics
    assert set(dataset.metrics) <= set(METRICS)
    if dataset.clip_len_s is not None:
        assert dataset.clip_len_at(tmp_path) == dataset.clip_len_s > 0


@every_file
def test_a_file_is_read_into_the_normal_form(sample: FileSample, tmp_path: Path) -> None:
    rows = load_annotations(sample.dataset, sample.write(tmp_path))
    assert len(rows) == 3
    assert rows[0] == sample.first
    for row in rows:
        check_id(row.video_id)
        assert len(row.clip_ids or ()) == len(row.saliency or ())


@every_file
def test_the_normal_form_survives_a_round_trip_and_can_be_given_back(
    sample: FileSample, tmp_path: Path
) -> None:
    rows = load_annotations(sample.dataset, sample.write(tmp_path))
    kept = tmp_path / "kept.jsonl"
    save_jsonl(rows, kept)
    assert read_jsonl(kept) == rows
    assert load_annotations(sample.dataset, kept) == rows


@every_file
def test_a_wrong_query_names_its_place_and_spoils_no_other(
    sample: FileSample, tmp_path: Path
) -> None:
    path = sample.write(tmp_path)
    path.write_text(_with_a_wrong_query(sample).text)
    *good, wrong = DATASETS.get(sample.dataset).records(path)
    assert good[0].annotation() == sample.first
    assert len(good) == 2
    assert all(record.annotation() for record in good)
    assert wrong.where == f"{path}, {sample.third}"
    with pytest.raises(UsageError, match="^" + re.escape(wrong.where)):
        wrong.annotation()


@every_file
def test_a_file_that_is_cut_off_or_holds_no_number_names_its_place(
    sample: FileSample, tmp_path: Path
) -> None:
    path = sample.write(tmp_path)
    text = sample.text.rstrip()
    place = str(path) if isinstance(sample.content, dict) else f"{path}, {sample.third}"
    for wrong in (text[: len(text) - 18], _with_a_nan(text)):
        path.write_text(wrong)
        with pytest.raises(UsageError, match=re.escape(place)):
            load_annotations(sample.dataset, path)


@every_file
def test_the_same_query_twice_is_refused(sample: FileSample, tmp_path: Path) -> None:
    path = sample.write(tmp_path)
    twice = sample.text + sample.text
    path.write_text(twice)
    if isinstance(sample.content, str):
        # Lines of text have no ids: the same line again is another query.
        assert [row.qid for row in load_annotations(sample.dataset, path)][3:] == [
            "AO8RW_2",
            "AO8RW_3",
            "Y6R7T_1",
        ]
        return
    with pytest.raises(UsageError, match=re.escape(str(path))):
        load_annotations(sample.dataset, path)


@every_file
def test_no_file_and_a_folder_are_told_apart(sample: FileSample, tmp_path: Path) -> None:
    for wrong, message in (("nowhere", "o such file|does not exist"), (".", "is a folder")):
        with pytest.raises(UsageError, match=message):
            load_annotations(sample.dataset, tmp_path / wrong)


@every_file
def test_a_dataset_is_guessed_only_where_no_other_can_be_meant(
    sample: FileSample, tmp_path: Path
) -> None:
    path = sample.write(tmp_path)
    if sample.guessed is None:
        with pytest.raises(UsageError, match=rf"{sample.dataset}.*say which with --dataset"):
            guess_dataset(path)
    elif sample.dataset == "synthetic":
        assert guess_dataset(path) == "custom"  # which reads it in the same way
    else:
        assert guess_dataset(path) == sample.guessed


def test_what_is_no_annotation_file_is_not_guessed(tmp_path: Path) -> None:
    for text, message in (
        ("", "hold no rows"),
        ("\n \n", "hold no rows"),
        ("a,b,c\n1,2,3\n", "no annotation file that is known"),
        ('{"a": {"b": 1}}', r"no known dataset \(fields of its first query: b\)"),
        ("[1, 2]", "hold a list"),
        ('{"qid": 1, "query": "a', "line 1 is not JSON"),
    ):
        (tmp_path / "file").write_text(text)
        with pytest.raises(UsageError, match=message):
            guess_dataset(tmp_path / "file")


@every_file
def test_a_byte_order_mark_changes_nothing_and_packed_files_are_named(
    sample: FileSample, tmp_path: Path
) -> None:
    path = sample.write(tmp_path)
    rows, content = load_annotations(sample.dataset, path), path.read_bytes()
    path.write_bytes(codecs.BOM_UTF8 + content)
    assert load_annotations(sample.dataset, path) == rows
    assert guess_of(path) == sample.guessed
    for packed, message in (
        (gzip.compress(content), "packed by gzip; unpack"),
        (content.decode().encode("utf-16"), "in UTF-16; save them as UTF-8"),
    ):
        path.write_bytes(packed)
        for read in (lambda: load_annotations(sample.dataset, path), lambda: guess_dataset(path)):
            with pytest.raises(UsageError, match=message):
                read()


def guess_of(path: Path) -> str | None:
    try:
        return guess_dataset(path)
    except UsageError:
        return None


def test_rows_on_cuts_of_youtube_are_of_qvhighlights_without_ground_truth_too(
    tmp_path: Path,
) -> None:
    """Otherwise `trainer lint train test` would not know that both cut the same recording."""
    row = {"qid": 1, "query": "a", "duration": 150, "vid": "j7rJstUseKg_360.0_510.0"}
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert guess_dataset(path) == "qvhighlights"
    path.write_text(json.dumps(row | {"vid": "kitchen_1_2"}) + "\n")
    assert guess_dataset(path) == "custom"


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("custom", b'{"qid": 1, "query": "', f"line 1 has more than the {LONGEST_LINE:,} bytes"),
        ("tvsum", b'{"qid": 1, "query": "', f"line 1 has more than the {LONGEST_LINE:,} bytes"),
        ("tacos", b'{"s30-d52.avi": {"x": "', "larger than the 67,108,864 bytes"),
        ("charades_sta", b"AO8RW 1 2##", f"line 1 is longer than the {LONGEST_LINE:,} bytes"),
    ],
)
def test_a_line_of_a_hundred_megabytes_is_refused(
    name: str, start: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(start + b"x" * 100_000_000)
    with pytest.raises(UsageError, match=rf"rows.*{message}"):
        load_annotations(name, path)
    path.unlink()


def _with_a_wrong_query(sample: FileSample) -> FileSample:
    """The same file; the sentence of its third query is a number."""
    content: Any = copy.deepcopy(sample.content)
    if isinstance(content, str):
        content = content.replace("Y6R7T 7.3 17.3##person leaves.", "Y6R7T 7.3 x##person leaves.")
    elif isinstance(content, list):
        content[2]["query"] = 7
    else:
        last = list(content.values())[-1]
        last |= {"sentences": [7]} if "sentences" in last else {"title": 7, "domain": 7}
    return FileSample(sample.dataset, sample.name, content, sample.first, sample.third)


def _with_a_nan(text: str) -> str:
    """The same text with its last number replaced."""
    found = list(re.finditer(r"\b[0-9]+(\.[0-9]+)?\b(?=[\]},#])", text))[-1]
    return text[: found.start()] + "NaN" + text[found.end() :]


def test_only_matches_above_0_are_highlights_of_youtube(tmp_path: Path) -> None:
    # UMT, datasets/youtube.py: `match` is 1, 0 or -1, and positive are those above 0
    row = {"qid": "v", "query": "dog", "vid": "v", "duration": 12.5, "fps": 20.0}
    clips = [[0.0, 100.0], [50.0, 150.0], [100.0, 200.0]]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row | {"clip": clips, "match": [-1, 0, 1]}) + "\n")
    [found] = load_annotations("youtube_highlights", path)
    assert found.saliency == ((0.0,), (0.0,), (1.0,))
