"""Annotations of any dataset on their way into a store: kept as in the file, faults are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml

from data.annotations import load_annotations
from data.annotations.mend import mended
from data.errors import UsageError
from data.identity import query_id
from data.store import Store
from data.store.gc import gc
from data.store.repair import repair
from pipeline.config import load_pipeline_config
from pipeline.run import View, look

pytestmark = pytest.mark.usefixtures("toy_stages")

MOMENTS = "AO8RW 6.9 0.0##a person sits.\nAO8RW 2 50##b.\nAO8RW 3 3##c.\nAO8RW 0 5##d.\n"
DURATIONS = '{"AO8RW": 33.67}'
SENTENCES = [
    "1 of 4 moments end before they start: start and end are swapped (qid AO8RW_0)",
    "1 of 4 moments reach out of their video: they are cut to it (qid AO8RW_1)",
    "1 of 4 moments are empty or begin after the end of their video: they are dropped "
    "(qid AO8RW_2)",
    "1 of 4 queries have no other moment and are left out (qid AO8RW_2)",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toys.write_videos(tmp_path / "videos", ["AO8RW"])
    (tmp_path / "train.txt").write_text(MOMENTS)
    (tmp_path / "durations.json").write_text(DURATIONS)
    return tmp_path


def config_of(name: str, **more: Any) -> dict[str, Any]:
    return {"dataset": name, "annotations": {"train": "train.txt"}, "clip_len_s": 1.0} | more


def view_of(folder: Path, name: str, **more: Any) -> View:
    values = {"videos": {"root": "videos"}, "store": "store", "stages": {"rows": {}, "lengths": {}}}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(values | config_of(name, **more)))
    return look(load_pipeline_config(folder / "pipeline.yaml"), [], None)


def test_rows_are_as_in_the_file_and_what_training_mends_is_told(folder: Path) -> None:
    view = view_of(folder, "charades_sta")
    mended = "annotations of 'train', mended for training and strict scores: "
    assert list(view.notes) == [mended + sentence for sentence in SENTENCES]
    assert [(row.qid, row.windows) for row in view.annotations["train"]] == [
        ("AO8RW_0", ((6.9, 0.0),)),
        ("AO8RW_1", ((2.0, 50.0),)),
        ("AO8RW_2", ((3.0, 3.0),)),
        ("AO8RW_3", ((0.0, 5.0),)),
    ]


def test_the_format_may_be_of_another_dataset_than_the_store(folder: Path) -> None:
    view = view_of(folder, "kitchen", annotations_format="charades_sta")
    assert len(view.annotations["train"]) == 4


def test_a_store_keeps_what_the_file_says_and_the_text_of_every_query(
    folder: Path, run_toys: toys.RunToys
) -> None:
    run_toys(["lengths"], **config_of("charades_sta"))
    store = Store.open(folder / "store")
    rows = load_annotations("charades_sta", folder / "train.txt")
    assert store.annotations("train") == rows
    reader = store.reader("lengths")
    assert all(query_id(row.query) in reader for row in rows)
    assert store.splits() == ["train"]
    assert store.verify() == []


def test_a_store_with_mended_rows_and_a_list_of_them_is_whole_and_gets_the_rows_of_the_file(
    folder: Path, run_toys: toys.RunToys
) -> None:
    """As some versions wrote them."""
    run_toys(["lengths"], **config_of("charades_sta"))
    store = Store.open(folder / "store")
    rows = store.annotations("train")
    usable, _ = mended(rows)
    store.save_annotations("train", usable)
    (folder / "store/annotations/train.mended.json").write_text('{"changes": []}\n')
    assert (store.splits(), store.verify(), list(repair(store))) == (["train"], [], [])
    assert gc(store, older_than_s=0.0, now=4e9) == []
    assert store.annotations("train") == usable
    run_toys(["lengths"], **config_of("charades_sta"))
    assert store.annotations("train") == rows


def test_annotations_of_which_nothing_can_be_used_are_refused(folder: Path) -> None:
    (folder / "train.txt").write_text("AO8RW 40 50##a.\n")
    with pytest.raises(UsageError, match=r"train\.txt hold no query that can be used.*AO8RW_0"):
        view_of(folder, "charades_sta")


def test_without_durations_the_user_is_told(folder: Path) -> None:
    (folder / "durations.json").unlink()
    (folder / "train.txt").write_text("AO8RW 0 5##d.\n")
    (note,) = view_of(folder, "charades_sta").notes
    assert "1 of 1 queries do not say how long their video is" in note


@pytest.mark.parametrize("clip_len_s", [1.0, 2.0])
def test_clips_with_places_of_their_own_go_with_any_grid(folder: Path, clip_len_s: float) -> None:
    row = {"qid": "a", "query": "dog", "vid": "a", "duration": 12.5, "domain": "dog"}
    clips = {"frames": 250.0, "fps": 20.0, "clip": [[0.0, 100.0], [50.0, 151.0]], "match": [0, 1]}
    (folder / "train.txt").write_text(json.dumps(row | clips) + "\n")
    view = view_of(folder, "youtube_highlights", clip_len_s=clip_len_s)
    assert view.annotations["train"][0].clip_spans_s == ((0.0, 5.0), (2.5, 7.55))
    assert view.notes == ()


def test_ratings_of_clips_belong_to_clips_of_their_length(folder: Path) -> None:
    row = {"qid": "a", "query": "q", "vid": "a", "duration": 2, "domain": "VU"}
    (folder / "train.txt").write_text(json.dumps(row | {"label": [[1, 2], [3, 1]]}) + "\n")
    assert view_of(folder, "tvsum", clip_len_s=2.0).annotations["train"][0].duration_s == 4.0
    with pytest.raises(UsageError, match=r"belong to clips of 2 s \(format 'tvsum'\)"):
        view_of(folder, "tvsum", clip_len_s=1.0)
