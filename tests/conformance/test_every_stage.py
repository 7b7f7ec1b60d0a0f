"""Every registered stage keeps the promises of `pipeline.stage`, on a real video of 3 seconds."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.stages  # noqa: F401 - registers all stages
from data.errors import InputError
from data.identity import canonical_json, file_sha256, query_id
from data.store.types import ItemKey, Row
from data.video import open_decoder
from data.video.sound import SoundReader
from data.video.types import Video, VideoFacts
from pipeline.stage import STAGES, FrameStage, Item, RowStage, SoundStage, Stage, StageContext

CONTEXT = StageContext(clip_len_s=0.7)
SECONDS, FPS, RATE_HZ = 3, 10, 16_000

OPTIONS: dict[str, dict[str, Any]] = {"captions": {"part_size": 2}}
"""Options that make a stage small; stages that are not named run with their defaults."""


class Rows:
    """Rows of other stages, from memory."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self.rows = rows

    def row(self, stage: str) -> Row:
        return self.rows[stage]


def make(name: str, **options: Any) -> Stage:
    kind = STAGES.get(name)
    return kind(CONTEXT, kind.Options(**(OPTIONS.get(name, {}) | options)))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Video:
    """A square that crosses the picture and turns from red to blue half-way, with a tone."""
    import av

    path = tmp_path_factory.mktemp("media") / "square.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
        track = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for index in range(SECONDS * FPS):
            picture = np.full((80, 96, 3), 40, np.uint8)
            colour = (220, 30, 30) if index < SECONDS * FPS / 2 else (30, 30, 220)
            picture[20:60, 2 * index : 2 * index + 30] = colour
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        time_s = np.arange(SECONDS * RATE_HZ) / RATE_HZ
        tone = (0.3 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        sound.sample_rate = RATE_HZ
        container.mux(track.encode(sound))
        container.mux(track.encode(None))
    return Video("square", path)


def item_for(stage: Stage, video: Video, facts: VideoFacts | None, part: int = 0) -> Item:
    if stage.over == "queries":
        sentence = "A red square moves to the right."
        content = query_id(sentence).removeprefix("q-") * 2
        return Item(ItemKey(query_id(sentence), content), text=sentence)
    key = ItemKey(video.id, file_sha256(video.path), part, stage.parts(facts))
    # the engine gives the facts of the probe to the stages that name it
    return Item(key, video, facts if "probe" in stage.upstream else None)


def run(stage: Stage, item: Item, rows: Mapping[str, Row]) -> Row:
    """What the engine does with one item."""
    if isinstance(stage, RowStage):
        return stage.process(item, Rows(rows))
    assert isinstance(stage, FrameStage | SoundStage)
    assert item.video is not None
    windows: list[Any]
    if isinstance(stage, SoundStage):
        windows = list(SoundReader().windows(item.video, stage.request(item)))
    else:
        windows = list(open_decoder("pyav").windows(item.video, [stage.request(item)]))
    results: list[Any] = []
    for first in range(0, len(windows), stage.batch_size):
        results += stage.encode(item, windows[first : first + stage.batch_size])
    return stage.finish(item, results)


@pytest.fixture(scope="module")
def runs(video: Video) -> dict[str, tuple[Stage, list[Row], list[Row]]]:
    """Every stage run twice by two instances, parts and all, after the stages that it reads."""
    done: dict[str, tuple[Stage, list[Row], list[Row]]] = {}

    def joined(name: str) -> Row:
        first = done[name][1]
        texts = {key: [t for row in first for t in row.texts[key]] for key in first[0].texts}
        arrays = {key: np.concatenate([row[key] for row in first]) for key in first[0].arrays}
        return Row(first[0].key, first[0].grid, arrays, texts, first[0].facts)

    def visit(name: str) -> None:
        if name in done:
            return
        stages = make(name), make(name)
        for upstream in stages[0].upstream:
            visit(upstream)
        facts = VideoFacts(**done["probe"][1][0].facts) if name != "probe" else None
        rows = {upstream: joined(upstream) for upstream in stages[0].upstream}
        twice = []
        for stage in stages:
            stage.setup()
            parts = range(stage.parts(facts))
            twice.append([run(stage, item_for(stage, video, facts, p), rows) for p in parts])
            stage.close()
        done[name] = (stages[0], *twice)

    for name in STAGES:
        visit(name)
    return done


@pytest.mark.parametrize("name", STAGES.names())
def test_a_stage_that_runs_twice_gives_equal_rows(name: str, runs: Any) -> None:
    _, first, second = runs[name]
    for one, other in zip(first, second, strict=True):
        assert one.key == other.key
        assert one.grid == other.grid
        assert one.texts == other.texts
        assert one.facts == other.facts
        for array in one.arrays:
            np.testing.assert_array_equal(one[array], other[array], strict=True)


@pytest.mark.parametrize("name", STAGES.names())
def test_a_row_is_what_the_schema_declares(name: str, runs: Any) -> None:
    stage, rows, _ = runs[name]
    for row in rows:
        assert set(row.arrays) == set(stage.schema.arrays)
        assert set(row.texts) == set(stage.schema.texts)
        assert all(isinstance(text, str) for texts in row.texts.values() for text in texts)
        canonical_json(dict(row.facts))
        for array, spec in stage.schema.arrays.items():
            assert row[array].dtype == spec.dtype, array
            assert row[array].shape[1:] == spec.shape, array
            if spec.per == "clip":
                assert len(row[array]) == row.grid.n, array


def test_all_rows_of_a_video_are_on_one_grid(runs: Any) -> None:
    grids = {row.grid for stage, rows, _ in runs.values() if stage.over == "videos" for row in rows}
    assert [grid.n for grid in grids] == [4]  # floor(3.0 / 0.7 + 1/2)


@pytest.mark.parametrize("name", STAGES.names())
def test_a_constructed_stage_travels_and_its_recipe_is_plain_json(name: str) -> None:
    stage = make(name)
    recipe = stage.recipe(dict.fromkeys(stage.upstream, "0" * 16))
    canonical_json(recipe.to_json())
    there = pickle.loads(pickle.dumps(stage))
    assert there.recipe(dict.fromkeys(there.upstream, "0" * 16)).id == recipe.id


@pytest.mark.parametrize("name", STAGES.names())
def test_what_a_worker_gets_does_not_change_the_recipe(name: str) -> None:
    more = make(name, cpus=2, gpus=0.5, memory_mb=900)
    assert more.recipe({}).id == make(name).recipe({}).id
    assert (more.resources.cpus, more.resources.gpus, more.resources.memory_mb) == (2, 0.5, 900)


@pytest.mark.parametrize("name", STAGES.names())
def test_every_option_is_explained(name: str) -> None:
    fields = STAGES.get(name).Options.model_fields
    assert all((field.description or "").endswith(".") for field in fields.values())


def test_a_plan_needs_neither_networks_nor_decoders() -> None:
    """Constructing all stages and their recipes is what `pipeline plan` does first."""
    code = """
import sys, pipeline.stages
from pipeline.stage import STAGES, StageContext
for name in STAGES:
    kind = STAGES.get(name)
    stage = kind(StageContext(1.0), kind.Options())
    stage.recipe({})
heavy = {"torch", "av", "decord", "open_clip", "transformers", "spacy", "ray"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "missing"), (b"", "empty"), (b"no video" * 99, "not-media")]
)
def test_a_file_that_is_no_video_is_refused_by_the_probe(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    stage = make("probe")
    stage.setup()
    with pytest.raises(InputError) as caught:
        run(stage, Item(ItemKey("bad", "0" * 64), Video("bad", path)), {})
    stage.close()
    assert caught.value.reason == reason


def test_features_that_are_not_finite_are_refused_with_the_video_named(runs: Any) -> None:
    clip = runs["clip"][1][0]
    broken = clip["clip"].copy()
    broken[1, 2] = np.nan
    rows = {"clip": Row(clip.key, clip.grid, {"clip": broken})}
    with pytest.raises(InputError, match="square"):
        run(make("events"), Item(clip.key), rows)


def test_a_query_without_words_is_refused() -> None:
    stage = make("queries")
    stage.setup()
    with pytest.raises(InputError, match="without words"):
        run(stage, Item(ItemKey("q-1", "0" * 64), text="  "), {})
