"""The stages `i3d` and `i3d_flow`: presets, windows, rows and recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data.errors import UsageError
from data.store.types import ItemKey
from data.video.types import VideoFacts, Window
from pipeline.stage import STAGES, Item, StageContext
from pipeline.stages.features import BackboneStage

NARROW = {"divisor": 8, "size": 64, "short_side": 64}


def stage(name: str, clip_len_s: float = 0.5, **options: Any) -> BackboneStage:
    kind = STAGES.get(name)
    made = kind(StageContext(clip_len_s), kind.Options(**options))
    assert isinstance(made, BackboneStage)
    return made


def item(duration_s: float) -> Item:
    facts = VideoFacts(duration_s, 10, 30, 64, 64, 0, "h264", "yuv420p", 1, False, 0)
    return Item(ItemKey("film", "0" * 64), facts=facts)


def recipe(name: str, **options: Any) -> str:
    return stage(name, **options).recipe({}).id


@pytest.mark.parametrize(("duration_s", "rows", "windows"), [(2.5, 5, 3), (2.0, 4, 2), (0.2, 1, 1)])
def test_windows_of_two_rows_fill_the_grid_exactly(
    duration_s: float, rows: int, windows: int
) -> None:
    made = stage("i3d", preset="vslnet", options=NARROW)
    made.setup()
    film = item(duration_s)
    request = made.request(film)
    assert request.times_s.shape == (windows, 24)
    random = np.random.Generator(np.random.PCG64(0))
    given = [
        Window("i3d", unit, random.integers(0, 256, (24, 64, 64, 3), np.uint8), request.times_s[0])
        for unit in range(windows)
    ]
    results = made.encode(film, given)
    row = made.finish(film, results)
    assert row["i3d"].shape == (rows, 128)
    in_order = np.concatenate([np.asarray(each) for each in results])[:rows]
    np.testing.assert_array_equal(row["i3d"], in_order.astype(np.float16))
    with pytest.raises(ValueError, match=f"{windows + 1} features for the {rows} clips"):
        made.finish(film, [*results, results[0]])


@pytest.mark.parametrize("name", ["i3d", "i3d_flow"])
def test_a_clip_length_that_the_preset_cannot_make_is_refused_by_the_plan(name: str) -> None:
    with pytest.raises(UsageError, match=r"make clips of 0\.5 s, but clip_len_s is 2"):
        stage(name, 2.0, preset="vslnet")
    stage(name, 1.0, preset="vslnet", options={"rows_per_window": 1})
    stage(name, 2.0, preset="grid")


def test_flow_asks_for_whole_frames_and_one_more() -> None:
    rgb, flow = (stage(each, 2.0, preset="grid", options=NARROW) for each in ("i3d", "i3d_flow"))
    rgb.setup()
    flow.setup()
    one, other = rgb.request(item(6.0)), flow.request(item(6.0))
    assert (one.view.crop, other.view.crop) == (True, False)
    np.testing.assert_array_equal(other.times_s[:, :-1], one.times_s)


def test_the_row_says_which_flow_was_computed() -> None:
    quick = {"scales": 1, "warps": 1}
    made = stage("i3d_flow", 2.0, preset="grid", options=NARROW, flow_options=quick)
    made.setup()
    film = item(2.0)
    times = made.request(film).times_s
    window = Window("i3d_flow", 0, np.zeros((times.shape[1], 64, 80, 3), np.uint8), times[0])
    row = made.finish(film, made.encode(film, [window]))
    assert row["i3d_flow"].shape == (1, 128)
    assert row.facts["flow"]["flow"] == "tvl1-torch"
    assert row.facts["flow"]["warps"] == 1
    assert row.facts["weights"]["kind"] == "random"


def test_every_choice_about_flow_is_another_recipe() -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"flow": "tvl1"},
        {"preset": "grid", "flow": "raft"},
        {"preset": "grid", "flow": "raft", "flow_options": {"seed": 1}},
        {"preset": "grid", "flow": "raft", "flow_options": {"model": "small"}},
        {"scaling": "v-iashin"},
        {"preset": "grid"},
        {"preset": "vslnet"},
    ]
    assert len({recipe("i3d_flow", **choice) for choice in choices}) == len(choices)


def test_how_the_machine_is_used_is_no_other_recipe() -> None:
    usual = recipe("i3d_flow", flow="tvl1")
    assert recipe("i3d_flow", flow="tvl1", flow_options={"threads": 3, "chunk": 8}) == usual


def test_the_weights_of_the_flow_are_in_the_recipe_by_their_bytes(tmp_path: Path) -> None:
    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"two")):
        (tmp_path / name).write_bytes(content)
    raft = {"preset": "grid", "flow": "raft"}
    a, b, c = (
        recipe("i3d_flow", **raft, flow_checkpoint=tmp_path / f"{name}.pth") for name in "abc"
    )
    assert a == b != c
    with pytest.raises(UsageError, match="does not exist"):
        recipe("i3d_flow", **raft, flow_checkpoint=tmp_path / "d.pth")
    with pytest.raises(UsageError, match="flow 'tvl1' is no network and takes no"):
        recipe("i3d_flow", flow="tvl1", flow_checkpoint=tmp_path / "a.pth")


def test_a_flow_that_does_not_exist_is_refused_when_the_config_is_read() -> None:
    with pytest.raises(ValidationError, match="flow"):
        stage("i3d_flow", flow="farneback")


def test_options_that_a_flow_does_not_have_are_refused_by_the_plan() -> None:
    with pytest.raises(UsageError, match="flow tvl1-torch: unknown option 'warp'; did you mean"):
        stage("i3d_flow", flow_options={"warp": 2})
    with pytest.raises(UsageError, match="flow tvl1: unknown option 'scales'"):
        stage("i3d_flow", flow="tvl1", flow_options={"scales": 2})


def test_frames_that_are_too_small_for_a_flow_are_refused_by_the_plan() -> None:
    with pytest.raises(UsageError, match=r"at least 121 pixels, preset 'tiny' has 64; say preset"):
        stage("i3d_flow", flow="raft")
    stage("i3d_flow", preset="grid", flow="raft")


def test_a_flow_gets_no_options_that_the_preset_has_for_another() -> None:
    kind = STAGES.get("i3d_flow").Options
    assert "flow_options" not in kind().arguments
    assert kind(flow="tvl1").arguments["flow_options"] == {}
