"""Captions of a store as JSON lines, CSV and paragraphs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from data.annotations.types import Annotation
from data.errors import StoreError, UsageError
from data.grid import Grid
from data.interop import export_captions
from data.store import Recipe, Row, Schema, Store, StreamSpec
from data.store.types import ItemKey

SCHEMA = Schema({"time_s": StreamSpec((), "float64", "item")}, ("caption", "record"))
RECIPE = Recipe("captions", 2, {"captioner": "toy"}, {}, SCHEMA)


def row(id_: str, part: int, parts: int, said: list[tuple[float, str]]) -> Row:
    statuses = ["ok" if text else "failed" for _, text in said]
    return Row(
        ItemKey(id_, id_[0] * 64, part, parts),
        Grid(10.0, 2.0),
        {"time_s": np.array([time for time, _ in said])},
        {
            "caption": [text for _, text in said],
            "record": [json.dumps({"status": each, "attempts": 1}) for each in statuses],
        },
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two videos: `b` in two parts, one of its captions failed; `a` with a new line in one."""
    made = Store.open_or_create(tmp_path / "store", dataset="d", clip_len_s=2.0)
    with made.writer(RECIPE) as writer:
        writer.add(row("b", 0, 2, [(0.0, "A red square."), (1.0, "")]))
        writer.add(row("b", 1, 2, [(2.0, "Ein Kreis, blau.")]))
        writer.add(row("a", 0, 1, [(0.25, "One,\ntwo."), (0.1, "Zero.")]))
    made.set_current({"captions": RECIPE.id})
    made.save_annotations("val", [Annotation(1, "q", "a"), Annotation(2, "q", "gone")])
    return made


def test_json_lines_hold_every_caption_with_its_record(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out" / "captions.jsonl"
    report = export_captions(store, out, "captions")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["video_id"], each["index"]) for each in lines] == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2),
    ]  # fmt: skip
    assert lines[3] == {
        "video_id": "b",
        "content": "b" * 64,
        "index": 1,
        "time_s": 1.0,
        "caption": "",
        "recipe": RECIPE.id,
        "status": "failed",
        "attempts": 1,
    }
    assert (report.files, report.written, report.notes) == ({"captions": 5, "videos": 2}, 1, [])
    beside = json.loads((tmp_path / "out" / "captions.jsonl.recipe.json").read_text())
    assert beside["recipe"]["params"] == {"captioner": "toy"}


def test_the_columns_of_csv_are_those_of_lifelong_memory(store: Store, tmp_path: Path) -> None:
    # specs/tea_lmr_cqval_splits.md §6.1: cid,vid,timestamp,caption
    report = export_captions(store, tmp_path / "captions.csv", "captions")
    with (tmp_path / "captions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["cid", "vid", "timestamp", "caption"],
        ["0", "a", "0.25", "One, two."],
        ["1", "a", "0.1", "Zero."],
        ["2", "b", "0", "A red square."],
        ["3", "b", "2", "Ein Kreis, blau."],
    ]
    assert list(report.notes) == ["1 captions failed and have no text; they were left out"]


def test_times_late_in_a_long_video_keep_their_microseconds(store: Store, tmp_path: Path) -> None:
    with store.writer(RECIPE) as writer:
        writer.add(row("c", 0, 1, [(12345.675, "Late."), (12345.7 + 1 / 30, "A frame later.")]))
    export_captions(store, tmp_path / "c.csv", "captions")
    with (tmp_path / "c.csv").open(newline="") as file:
        times = [each["timestamp"] for each in csv.DictReader(file) if each["vid"] == "c"]
    assert times == ["12345.675", "12345.733333"]
    export_captions(store, tmp_path / "paragraphs", "paragraphs")
    lines = (tmp_path / "paragraphs" / "c.txt").read_text().splitlines()
    assert lines == ["12345.675: Late.", "12345.733333: A frame later."]


def test_paragraphs_are_lines_of_time_and_caption_in_order(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "paragraphs"
    export_captions(store, out, "paragraphs")
    assert (out / "a.txt").read_text() == "0.1: Zero.\n0.25: One, two.\n"
    assert (out / "b.txt").read_text() == "0: A red square.\n2: Ein Kreis, blau.\n"
    assert json.loads((out / "storyline_export.json").read_text())["complete"] is True
    again = export_captions(store, out, "paragraphs")
    assert again.written == 0


def test_only_videos_of_a_split_are_written_and_those_that_lack_captions_are_named(
    store: Store, tmp_path: Path
) -> None:
    report = export_captions(store, tmp_path / "c.jsonl", "captions", splits=["val"])
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 2
    assert report.missing == {"captions": ["gone"]}


def test_a_file_that_is_there_is_replaced_only_when_asked(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    out.write_text("mine")
    with pytest.raises(UsageError, match="is there already; give another name, or --overwrite"):
        export_captions(store, out, "captions")
    assert out.read_text() == "mine"
    export_captions(store, out, "captions", overwrite=True)
    assert len(out.read_text().splitlines()) == 5


def test_an_export_that_is_stopped_leaves_no_part_of_a_file(store: Store, tmp_path: Path) -> None:
    asked = iter([False, True])
    report = export_captions(
        store, tmp_path / "c.jsonl", "captions", stop=lambda: next(asked, True)
    )
    assert (report.interrupted, report.written) == (True, 0)
    assert not list(tmp_path.glob("*c.jsonl*")) + list(tmp_path.glob(".tmp*"))


def test_what_cannot_be_exported_says_why(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.jsonl .* or \.csv"):
        export_captions(store, tmp_path / "captions.txt", "captions")
    with pytest.raises(UsageError, match="unknown format of exported captions 'caption'"):
        export_captions(store, tmp_path / "c.jsonl", "caption")
    empty = Store.open_or_create(tmp_path / "empty", dataset="d", clip_len_s=2.0)
    with pytest.raises(UsageError, match="has no captions; make some with: pipeline run --stage"):
        export_captions(empty, tmp_path / "c.jsonl", "captions")


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ("{", "is not JSON that can be used"),
        ("[1]", "is a list, expected an object"),
        ('{"status": "ok", "status": "failed"}', "given twice"),
        ('{"score": NaN}', "NaN is not a number"),
        ("[" * 5000, "nested deeper"),
        ('{"reason": "\\ud800"}', "surrogates not allowed"),
    ],
)
@pytest.mark.parametrize("out", ["c.jsonl", "c.csv"])
def test_a_record_that_nobody_could_have_written_is_told_with_its_place(
    record: str, told: str, out: str, tmp_path: Path
) -> None:
    made = Store.open_or_create(tmp_path / "store", dataset="d", clip_len_s=2.0)
    one = row("a", 0, 1, [(0.0, "A dog."), (1.0, "A cat.")])
    one.texts["record"] = ["{}", record]
    with made.writer(RECIPE) as writer:
        writer.add(one)
    made.set_current({"captions": RECIPE.id})
    with pytest.raises(StoreError, match=f"the record of caption 1 of 'a' .*{told}"):
        export_captions(made, tmp_path / out, "captions")
    assert not list(tmp_path.glob("*.jsonl")) + list(tmp_path.glob("*.csv"))
