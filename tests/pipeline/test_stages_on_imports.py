"""Stages that read features which were imported: `events` from published CLIP features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import toys
import yaml
from typer.testing import CliRunner, Result

from data.store import Store
from data.store.types import ItemKey
from pipeline.cli import app
from pipeline.corpus import Corpus
from pipeline.events.parser import parse
from pipeline.stage import Item
from pipeline.view import share_of

CLIPS = 12


def call(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def plan(*words: Any) -> dict[str, dict[str, Any]]:
    done = call("plan", "--no-measure", "--json", *words)
    assert done.exit_code == 0, done.output
    return {line["stage"]: line for line in json.loads(done.stdout)["stages"]}


def scenes(seed: int) -> np.ndarray:
    """Two scenes: the features of the second half are others."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, 1, 16))
    half = CLIPS // 2
    noise = 0.01 * rng.standard_normal((CLIPS, 16))
    both = np.concatenate([np.repeat(first, half, 0), np.repeat(second, half, 0)])
    return (both + noise).astype(np.float32)


def write_film(path: Path, seconds: int = 24) -> None:
    """A small film that can be probed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        for number in range(10 * seconds):
            picture = np.full((64, 64, 3), number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: features of three videos, no video, a config that asks for events."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").mkdir()
    for number, id in enumerate("abc"):
        np.save(tmp_path / "f" / f"{id}.npy", scenes(number))
    config = {"store": "store", "stages": {"events": {}}, "engine": {"executor": "inline"}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    assert call("import", "--from", "f", "--stage", "clip").exit_code == 0
    return tmp_path


def test_events_are_found_in_imported_features_without_any_video(folder: Path) -> None:
    store = Store.open(folder / "store")
    before = plan()
    assert before["clip"]["imported"]
    assert before["clip"]["because"] == "events"
    assert (before["clip"]["present"], before["events"]["missing"]) == (3, 3)
    done = call("run")
    assert done.exit_code == 0, done.output
    for number, id in enumerate("abc"):
        expected = parse(scenes(number).astype(np.float64), 2.0, 2.0 * CLIPS)
        found = store.reader("events").array(id, "boundaries_s")
        np.testing.assert_allclose(found, expected.boundaries_s)
        assert CLIPS in found  # the scenes change after 6 clips of 2 s
    assert store.reader("events").recipe.upstream == {"clip": store.current["clip"]}
    assert store.verify() == []
    again = call("run")
    assert again.exit_code == 0
    assert plan()["events"]["present"] == 3


def test_features_of_a_new_name_are_streams_of_events_and_rows_do_not_depend_on_the_group(
    folder: Path,
) -> None:
    assert call("import", "--from", "f", "--stage", "dinov2").exit_code == 0
    streams = ["--stage", "events", "--set", "stages.events.streams={dinov2: 1.0, clip: 0.5}"]
    assert call("run", *streams, "--set", "stages.events.group_size=1").exit_code == 0
    store = Store.open(folder / "store")
    reader = store.reader("events")
    assert set(reader.recipe.upstream) == {"clip", "dinov2"}
    alone = {id: reader.row(id) for id in "abc"}
    again = ["--store", "other", *streams, "--set", "stages.events.group_size=3"]
    for name in ("clip", "dinov2"):
        new = ["--store", "other", "--clip-len", "2", "--dataset", "videos"]
        done = call("import", "--from", "f", "--stage", name, *new)
        assert done.exit_code == 0, done.output
    assert call("run", *again).exit_code == 0
    together = Store.open(folder / "other").reader("events")
    assert together.recipe.id == reader.recipe.id
    for id, row in alone.items():
        for name, array in row.arrays.items():
            assert together.row(id)[name].tobytes() == array.tobytes()


def test_a_stream_that_was_not_imported_is_named_before_anything_runs(folder: Path) -> None:
    assert call("import", "--from", "f", "--stage", "dinov2").exit_code == 0
    failed = call("run", "--set", "stages.events.streams={dinov: 1.0}")
    assert failed.exit_code == 2
    told = " ".join(failed.output.split())
    assert "did you mean 'dinov2'" in told
    assert told.count(" clip,") == 1


def test_new_imported_videos_are_worked_on_and_changed_ones_are_another_recipe(
    folder: Path,
) -> None:
    assert call("run").exit_code == 0
    np.save(folder / "f" / "d.npy", scenes(3))
    assert call("import", "--from", "f", "--stage", "clip").exit_code == 0
    grown = plan()["events"]
    assert (grown["present"], grown["missing"]) == (3, 1)
    np.save(folder / "f" / "a.npy", scenes(9))
    assert call("import", "--from", "f", "--stage", "clip").exit_code == 0
    changed = plan()["events"]
    assert (changed["present"], changed["missing"]) == (0, 4)
    assert "upstream.clip" in changed["change"]


def test_limits_and_shares_hold_for_imported_videos(folder: Path) -> None:
    assert plan("--limit", "2")["events"]["wanted"] == 2
    items = tuple(Item(ItemKey(id, "0" * 64)) for id in "abcdefgh")
    shares = [share_of(Corpus((), (), items), f"{n}/2").imported for n in (1, 2)]
    assert all(shares)
    assert sorted(each.key.id for each in sum(shares, ())) == list("abcdefgh")


def test_a_stage_that_is_asked_for_is_made_although_it_was_imported(folder: Path) -> None:
    toys.write_videos(folder / "videos", ["a"])
    asked = ["--set", "videos.root=videos", "--stage", "clip", "--stage", "events"]
    lines = plan(*asked)
    assert not lines["clip"]["imported"]
    assert lines["clip"]["missing"] == lines["events"]["missing"] == 1


def test_imported_rows_of_another_content_block_and_it_is_said(folder: Path) -> None:
    """With a second stream of the pipeline the videos are files, and rows must be bound to them."""
    write_film(folder / "videos" / "a.mp4")
    config = ["--set", "videos.root=videos", "--set", "stages.events.streams={clip: 1, i3d: 1}"]
    config += ["--set", "stages.i3d={preset: tiny}"]
    lines = plan("--stage", "events", *config)
    assert (lines["clip"]["waiting"], lines["events"]["waiting"]) == (1, 1)
    done = call("run", "--stage", "probe", "--set", "videos.root=videos")
    assert done.exit_code == 0, done.output
    lines = plan("--stage", "events", *config)
    assert (lines["clip"]["blocked"], lines["events"]["blocked"]) == (1, 1)
    text = " ".join(call("plan", "--no-measure", "--stage", "events", *config).output.split())
    assert "imported rows" in text
    assert call("import", "--from", "f", "--stage", "clip", "--lengths", "resample").exit_code == 0
    bound = plan("--stage", "events", *config)
    assert (bound["clip"]["present"], bound["events"]["waiting"]) == (1, 1)
