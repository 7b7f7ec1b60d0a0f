"""`pipeline events figure`: what an SVG file shows of a video's events."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from data.store import Store
from pipeline.cli import app
from pipeline.report.event_figure import Picture, figure, similarity_image

CLIPS = 24
SVG = "{http://www.w3.org/2000/svg}"


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def scenes(*lengths: int, width: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((len(lengths), width))
    return np.repeat(means, lengths, axis=0) + 0.01 * rng.standard_normal((sum(lengths), width))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a store with events of two videos of three scenes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").mkdir()
    for number, id in enumerate(("film-a", "film-b")):
        np.save(tmp_path / "f" / f"{id}.npy", scenes(8, 6, 10, seed=number).astype(np.float32))
    config = {"store": "store", "stages": {"events": {}}, "engine": {"executor": "inline"}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    assert call("import", "--from", "f", "--stage", "clip").exit_code == 0
    assert call("run").exit_code == 0
    return tmp_path


def test_a_figure_has_the_matrix_the_curve_the_events_and_the_true_boundaries(folder: Path) -> None:
    truth = {"vid": "film-a", "duration": 48.0, "boundaries": [], "raters": [[16.0], [16.5, 28]]}
    (folder / "truth.jsonl").write_text(json.dumps(truth) + "\n")
    done = call("events", "figure", "film-a", "film-b", "--out", "o", "--boundaries", "truth.jsonl")
    assert done.exit_code == 0, done.output
    assert done.output.split() == ["o/film-a.svg", "o/film-b.svg"]
    first = ElementTree.parse(folder / "o" / "film-a.svg").getroot()
    row = Store.open(folder / "store").reader("events").row("film-a")
    assert row["boundaries_s"].tolist() == [16.0, 28.0]
    kinds = [each.get("class") for each in first.iter()]
    assert kinds.count("event") == 3
    assert kinds.count("cut") == 2
    assert kinds.count("true") == 3
    assert kinds.count("lane") == 2
    assert kinds.count("curve") == 1
    levels = len(set(row["boundary_depth"].tolist()))
    assert kinds.count("a") + kinds.count("b") == (3 if levels == 1 else 2 + 3)
    texts = [each.text for each in first.iter(f"{SVG}text")]
    assert "film-a: 3 events (rtp)" in texts
    assert {"true (1)", "true (2)", "events", "similarity", "boundary score"} <= set(texts)
    second = (folder / "o" / "film-b.svg").read_text()
    assert 'class="true"' not in second


def test_cuts_stand_where_the_axis_says(folder: Path) -> None:
    assert call("events", "figure", "film-a", "--out", "o").exit_code == 0
    root = ElementTree.parse(folder / "o" / "film-a.svg").getroot()
    cuts = [float(each.get("x1", "")) for each in root.iter() if each.get("class") == "cut"]
    ticks = {
        each.text: float(each.get("x", ""))
        for each in root.iter(f"{SVG}text")
        if each.get("text-anchor") == "middle"
    }
    per_second = (ticks["40 s"] - ticks["0 s"]) / 40
    assert [round((x - ticks["0 s"]) / per_second, 1) for x in cuts] == [16.0, 28.0]


def test_the_picture_of_the_matrix_is_a_png_with_a_pixel_per_pair_of_clips(folder: Path) -> None:
    assert call("events", "figure", "film-a", "--out", "o").exit_code == 0
    found = re.search(r"base64,([^\"]+)", (folder / "o" / "film-a.svg").read_text())
    assert found is not None
    image = Image.open(io.BytesIO(base64.b64decode(found[1])))
    image.load()
    assert (image.size, image.mode) == ((CLIPS, CLIPS), "L")
    grey = np.asarray(image)
    assert grey[:8, :8].min() > grey[:8, 8:14].max()


def test_a_pixel_of_a_long_video_is_the_mean_over_a_block_of_pairs() -> None:
    features = np.random.default_rng(1).standard_normal((21, 5))
    features[4] = 0.0
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
    cosines = unit @ unit.T
    blocks = cosines.reshape(7, 3, 7, 3).mean(axis=(1, 3))
    expected = np.rint(255 * (blocks - blocks.min()) / (blocks.max() - blocks.min()))
    np.testing.assert_array_equal(similarity_image(features, 7), expected)
    assert similarity_image(np.zeros((3, 2))).tolist() == [[255] * 3] * 3


@pytest.mark.parametrize(("similarity", "root"), [("l2", True), ("sqeuclidean", False)])
def test_distances_are_drawn_where_distances_were_compared(similarity: Any, root: bool) -> None:
    features = 5.0 + np.random.default_rng(2).standard_normal((21, 5))
    squares = np.square(features[:, None] - features).sum(axis=-1)
    for most, blocks in (
        (21, squares),
        (7, squares.reshape(7, 3, 7, 3).mean(axis=(1, 3))),
    ):
        apart = -np.sqrt(blocks) if root else -blocks
        expected = np.rint(255 * (apart - apart.min()) / (apart.max() - apart.min()))
        np.testing.assert_array_equal(similarity_image(features, most, similarity), expected)


def test_a_figure_of_another_similarity_says_so_and_has_its_picture(folder: Path) -> None:
    assert call("events", "figure", "film-a", "--out", "o").exit_code == 0
    assert call("run", "--set", "stages.events.similarity=l2").exit_code == 0
    assert call("events", "figure", "film-a", "--out", "l2").exit_code == 0
    drawn = [(folder / out / "film-a.svg").read_text() for out in ("o", "l2")]
    assert ">cosine</text>" in drawn[0]
    assert ">l2</text>" in drawn[1]
    first, second = (re.search(r"base64,([^\"]+)", text) for text in drawn)
    assert first is not None
    assert second is not None
    assert first[1] != second[1]


def test_scores_below_nothing_stay_in_their_lane() -> None:
    events = {
        "boundaries_s": np.empty(0),
        "boundary_depth": np.empty(0, np.int32),
        "spans_s": np.array([[0.0, 3.0]]),
        "scores": np.array([1.0, -4.0, 0.5]),
    }
    root = ElementTree.fromstring(figure(Picture("x", 3.0, 1.0, np.eye(3), events, "rtp")))
    curve = next(each for each in root.iter() if each.get("class") == "curve")
    heights = [float(point.split(",")[1]) for point in curve.get("points", "").split()]
    assert max(heights) - min(heights) == 110


def test_files_of_long_videos_stay_small_and_every_depth_has_its_place() -> None:
    rng = np.random.default_rng(2)
    cuts = np.sort(rng.choice(np.arange(1, 20_000), 400, replace=False)).astype(np.float64)
    ends = np.concatenate([[0.0], cuts, [20_000.0]])
    events = {
        "boundaries_s": cuts,
        "boundary_depth": rng.integers(0, 30, 400),
        "spans_s": np.stack([ends[:-1], ends[1:]], axis=1),
        "scores": rng.random(20_000),
    }
    drawn = figure(Picture("x", 20_000.0, 1.0, rng.standard_normal((20_000, 4)), events, "rtp"))
    assert len(drawn) < 400_000
    root = ElementTree.fromstring(drawn)
    rows = [each.text for each in root.iter(f"{SVG}text") if "level" in (each.text or "")]
    assert rows == [f"after level {n}" for n in range(1, 8)]
    assert sum(each.get("class") == "event" for each in root.iter()) == 401


def test_names_cannot_leave_their_place_in_the_file() -> None:
    events = {
        "boundaries_s": np.empty(0),
        "boundary_depth": np.empty(0, np.int32),
        "spans_s": np.array([[0.0, 1.0]]),
        "scores": np.zeros(1),
    }
    drawn = figure(Picture("a<script>", 1.0, 2.0, np.ones((1, 2)), events, "rtp"))
    assert "<script" not in drawn
    assert ElementTree.fromstring(drawn).findtext(f"{SVG}title") == "a<script>: 1 event (rtp)"


def test_what_is_not_there_is_said_with_what_to_do(folder: Path) -> None:
    unknown = call("events", "figure", "film", "--out", "o")
    assert unknown.exit_code == 2
    assert "no events of a video 'film'; did you mean 'film-" in " ".join(unknown.output.split())
    assert not (folder / "o").exists()
    new = ["--store", "bare", "--clip-len", "2", "--dataset", "videos"]
    assert call("import", "--from", "f", "--stage", "clip", *new).exit_code == 0
    bare = call("events", "figure", "film-a", "--store", "bare")
    assert bare.exit_code == 2
    assert "pipeline run --stage events" in " ".join(bare.output.split())


def test_a_figure_without_the_true_boundaries_that_were_asked_for_is_refused(folder: Path) -> None:
    truth = {"vid": "other", "duration": 48.0, "boundaries": [16.0]}
    (folder / "truth.jsonl").write_text(json.dumps(truth) + "\n")
    done = call("events", "figure", "film-a", "--boundaries", "truth.jsonl")
    assert done.exit_code == 2
    assert "truth.jsonl has no boundaries of film-a; its ids: other" in done.output


def test_figures_are_not_written_over_a_file(folder: Path) -> None:
    (folder / "out").write_text("mine")
    done = call("events", "figure", "film-a", "--out", "out")
    assert done.exit_code == 2
    assert "--out names a folder, and out is a file" in done.output
