"""Captioners `vlm` and `blip2` in the real engine, on a real file: from the config to the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from data.store import Row, Store
from pipeline.config import load_pipeline_config
from pipeline.engine.stop import StopFlag
from pipeline.progress import Progress
from pipeline.run import Result, Run, look, ray_or_inline
from tests.models.captioners.tiny_vlms import write

SECONDS = 5


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 5 s, 96 x 64, of another colour each second."""
    import av

    folder = tmp_path_factory.mktemp("films")
    colours = np.random.default_rng(0).integers(0, 256, (SECONDS, 4, 6, 3), dtype=np.uint8)
    with av.open(str(folder / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(10 * SECONDS):
            picture = colours[index // 10].repeat(16, 0).repeat(16, 1)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5_vl"))


@pytest.fixture
def run(tmp_path: Path, films: Path) -> Callable[..., Result]:
    """`run(captioner="vlm", …)`: the options of the stage; the store is `tmp_path/store`."""

    def run(**options: Any) -> Result:
        config = {
            "videos": {"root": str(films)},
            "store": "store",
            "engine": {"executor": "inline"},
            "stages": {"captions": {"failed": "keep", **options}},
        }
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
        loaded = load_pipeline_config(tmp_path / "pipeline.yaml")
        quiet = Progress(Console(quiet=True))
        return Run(loaded, look(loaded, (), None), ray_or_inline(loaded), quiet, StopFlag()).run()

    return run


def row(tmp_path: Path) -> Row:
    return Store.open(tmp_path / "store").reader("captions").row("film")


def records(found: Row) -> list[dict[str, Any]]:
    return [json.loads(each) for each in found.texts["record"]]


def test_a_vision_language_model_captions_clips_by_two_frames_with_their_times(
    tmp_path: Path, model: Path, run: Callable[..., Result]
) -> None:
    def asked(**more: Any) -> str:
        options = {"frames": 2, "side": 56, "say_times": True, "max_new_tokens": 6, "retries": 0}
        result = run(
            captioner="vlm", checkpoint=str(model), per="clip", options=options | more, prompt="lmr"
        )
        assert result.exit_code == 0
        return Store.open(tmp_path / "store").current["captions"]

    first = asked()
    found = row(tmp_path)
    told = records(found)
    assert len(found.texts["caption"]) == len(told) == 3  # clips of 2 s
    # two pictures of 56 x 28 or so: at least two tokens each, and the words
    assert all(each["prompt_tokens"] > 20 for each in told)
    assert all(each["new_tokens"] <= 6 for each in told)
    assert len({each["input"] for each in told}) == 3
    assert asked(max_rows=1) == first  # how it is computed is no part of the recipe
    assert asked(system="Be brief.") != first
    assert records(row(tmp_path))[0]["prompt_tokens"] > told[0]["prompt_tokens"]


def test_blip2_captions_timestamps_whatever_the_prompt(
    tmp_path: Path, run: Callable[..., Result]
) -> None:
    def asked(prompt: str) -> str:
        options = {"max_new_tokens": 6, "retries": 0}
        assert run(captioner="blip2", options=options, prompt=prompt).exit_code == 0
        return Store.open(tmp_path / "store").current["captions"]

    assert asked("tea") == asked("videochat")
    told = records(row(tmp_path))
    assert len(told) == SECONDS
    assert {each["prompt_tokens"] for each in told} == {9}  # eight queries and a beginning
    assert len({each["input"] for each in told}) == SECONDS
