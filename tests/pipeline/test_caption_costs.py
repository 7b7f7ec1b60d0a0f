"""What `pipeline plan` says of captions, beside what a run on the same films then makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from data.store import ItemKey, Store
from data.video.types import Window
from models.captioners import CAPTIONERS
from pipeline.cli import app
from pipeline.measure import _one_batch, can_be_measured
from pipeline.paces import Pace, paces_of, remember_pace
from pipeline.stage import Item, StageContext, StageSet
from pipeline.stages.captions import CaptionsOptions, CaptionsStage
from tests.models.captioners.chat_server import MODEL, chat_server

SECONDS = {"a": 5, "b": 9, "c": 3, "d": 4}
"""Films of different lengths and shapes."""

Call = Callable[..., str]


def write_film(path: Path, seconds: int, width: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
        for index in range(10 * seconds):
            picture = np.full((64, width, 3), 40 + 20 * (index // 10), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number, (name, seconds) in enumerate(SECONDS.items()):
        write_film(folder / f"{name}.mp4", seconds, 64 + 32 * number)
    return folder


@pytest.fixture
def call(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("plan", …, captioner="pixel", …)`: what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, code: int = 0, **captions: Any) -> str:
        config = {
            "videos": {"root": str(films)},
            "store": "store",
            "engine": {"executor": "inline", "cpus": 2},
            "stages": {"captions": captions},
        }
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == code, done.output
        return done.output

    return call


def cost(call: Call, *words: str, **captions: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call("plan", "--json", *words, **captions))["costs"][0]
    return found


def test_a_plan_measures_films_of_several_shapes_and_parts_and_counts_as_the_run_does(
    call: Call, tmp_path: Path
) -> None:
    call("run", "--stage", "probe")
    planned = cost(call, part_size=4)
    assert planned["source"] == "measured"
    assert planned["rate_hz"] > 0
    assert planned["workers"] == 2  # of the layout: one on each core
    assert planned["hours"] == pytest.approx(
        planned["captions"] / planned["rate_hz"] / 2 / 3600, rel=1e-6
    )
    done = call("run", part_size=4)
    assert f"{planned['captions']} captions, " in done
    (pace,) = paces_of(Store.open(tmp_path / "store"))
    assert pace.captions == planned["captions"] == sum(SECONDS.values())
    assert "nothing to do" in call("run", part_size=4)
    assert json.loads(call("plan", "--json", part_size=4))["costs"] == []
    shards = list((tmp_path / "store" / "captions").rglob("*.h5"))
    written = sum(each.stat().st_size for each in shards)
    assert written / 5 < planned["bytes"] < 5 * written


def test_reuse_is_not_taken_for_speed_when_it_is_measured() -> None:
    """Every window counts as one of a video of its own."""
    options = CaptionsOptions(reuse={"kind": "exact"})
    stage = CaptionsStage(StageContext(2.0), options)
    frames = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    item = Item(ItemKey("film", "0" * 64))
    pairs = [(item, Window("captions", unit, frames, np.zeros(1))) for unit in range(3)]
    assert len({each.key for each, _ in _one_batch(stage, pairs)}) == 3


def test_videos_that_are_not_probed_count_as_the_mean_of_those_that_are(call: Call) -> None:
    text = call("plan", "--no-measure")
    assert "4 videos to caption; how many captions that is, and what they cost, is known" in text
    assert cost(call, "--no-measure")["hours"] is None
    call("run", "--stage", "probe", "--limit", "2")
    known = cost(call, "--no-measure")
    assert known["unknown"] == 2
    assert known["captions"] == 2 * sum(SECONDS[name] for name in ("a", "b"))


def test_a_gpu_that_is_not_here_has_its_hours_and_not_the_speed_of_this_machine(
    call: Call,
) -> None:
    call("run", "--stage", "probe")
    big = {"captioner": "llava", "options": {"size": "13b"}}
    here = cost(call, "--no-measure", "--gpu", "H200", **big)
    assert (here["gpus"], here["source"]) == (1.0, "computed limit x 0.6")
    assert here["gpu_hours"] == pytest.approx(here["captions"] / here["rate_hz"] / 3600)
    tiny = cost(call, "--gpu", "H200", captioner="llava", options={"max_new_tokens": 2})
    assert tiny["source"] == "computed limit x 0.6"  # though this machine was measured, too
    text = call("plan", "--no-measure", "--gpu", "L4", **big)
    assert "24.9 GiB of weights do not fit into 1 L4" in text


def test_a_run_of_a_few_captions_does_not_spoil_what_a_long_one_said(
    call: Call, tmp_path: Path
) -> None:
    call("run", "--stage", "probe")
    plan = json.loads(call("plan", "--json", "--no-measure"))
    recipe = next(each["recipe"] for each in plan["stages"] if each["stage"] == "captions")
    store = Store.open(tmp_path / "store")
    for captions, worker_s in ((100, 1e6), (900, 100.0), (1, 50.0)):
        remember_pace(store, Pace(recipe, "", captions, 0, 0, worker_s))
    # 901 of the last two are not a thousand, so the first one counts, too
    assert cost(call, "--no-measure")["rate_hz"] == pytest.approx(1001 / 1_000_150)
    remember_pace(store, Pace(recipe, "", 2000, 1000, 0, 100.0))
    assert cost(call, "--no-measure")["rate_hz"] == pytest.approx(30.0)


@pytest.mark.parametrize("name", CAPTIONERS.names())
def test_only_captioners_that_work_here_are_tried_by_a_plan(name: str) -> None:
    stage = CaptionsStage(StageContext(2.0), CaptionsOptions(captioner=name))
    assert can_be_measured(StageSet((stage,))) is (name not in ("openai", "precomputed"))


def test_a_plan_asks_no_server_for_captions_and_a_run_tells_once_where_frames_go(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat_server() as (address, server):
        asked = {"captioner": "openai", "options": {"model": MODEL, "address": address}}
        call("run", "--stage", "probe", **asked)
        text = call("plan", **asked)
        assert "a first run tells" in text
        assert server.bodies == []
        assert "leave this machine" not in call("run", **asked)
        monkeypatch.setattr("models.captioners.openai_server.is_here", lambda address: False)
        more = asked | {"seed": 1}
        told = "frames of all videos leave this machine"
        assert call("plan", **more).count(told) == 1
        assert call("run", **more).count(told) == 1
        assert told not in call("run", **more)  # nothing to do: nothing is sent


def test_status_counts_captions_and_those_that_want_a_look(call: Call) -> None:
    call("run", captioner="llava", options={"max_new_tokens": 2})
    total = sum(SECONDS.values())
    line = next(
        each
        for each in json.loads(call("status", "--json"))["stages"]
        if each["stage"] == "captions"
    )
    assert line["told"][0] == f"{total} captions"
    assert any(each.endswith(" flagged") for each in line["told"])
