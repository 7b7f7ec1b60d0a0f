from __future__ import annotations

import json
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UsageError
from models.backbones import create
from models.backbones.slowfast import SlowFastNet, caffe2_name, pytorchvideo_name


@pytest.fixture(scope="module")
def official() -> SlowFastNet:
    return SlowFastNet()


def shapes_of(net: SlowFastNet) -> dict[str, Any]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def test_features_and_logits_equal_the_public_ones_on_filled_weights(
    goldens: Any, official: SlowFastNet
) -> None:
    backbone = create("slowfast", goldens.weights(shapes_of(official)), size=64)
    want = goldens.outputs("slowfast_64_cheap")
    for name in ("pub_a", "pub_b"):
        got = backbone.encode(goldens.frames(name, 32, 64, 64))
        np.testing.assert_allclose(got, want[f"{name}/feature"], rtol=1e-4, atol=1e-4)
    logits = backbone.net.head(torch.from_numpy(got))
    np.testing.assert_allclose(logits, want["pub_b/logits"], rtol=1e-4, atol=1e-4)


def test_pytorchvideo_weights_load_by_name_and_give_the_public_features(
    goldens: Any, official: SlowFastNet
) -> None:
    shapes = {pytorchvideo_name(name): shape for name, shape in shapes_of(official).items()}
    backbone = create("slowfast", goldens.weights(shapes), size=64)
    assert backbone.weights.layout == "PyTorchVideo"
    got = backbone.encode(goldens.frames("pub_a", 32, 64, 64))
    want = goldens.outputs("slowfast_64_cheap")["pub_a/feature_pytorchvideo_names"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_names_of_all_three_layouts_follow_the_key_map(
    shared: Path, official: SlowFastNet
) -> None:
    rows = json.loads((shared / "specs/extractor_keys/slowfast_8x8_r50_keys.json").read_text())
    assert {row["pyslowfast"]: tuple(row["shape"]) for row in rows} == shapes_of(official)
    for row in rows:
        assert caffe2_name(row["pyslowfast"]) == (row["caffe2"] or "")
        assert pytorchvideo_name(row["pyslowfast"]) == row["pytorchvideo"]


def test_a_caffe2_pickle_gives_the_same_network_as_the_state_dict(tmp_path: Path) -> None:
    narrow = {"divisor": 16, "size": 64}
    made = create("slowfast", **narrow)
    state = {k: v for k, v in made.net.state_dict().items() if not k.endswith("tracked")}
    blobs = {caffe2_name(name): value.numpy() for name, value in state.items()}
    blobs["conv1_w_momentum"] = np.zeros(3)
    path = tmp_path / "SLOWFAST.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    loaded = create("slowfast", path, **narrow)
    assert loaded.weights.layout == "Caffe2"
    assert loaded.weights.sha256 == made.weights.sha256
    del blobs["t_pool1_subsample_w"]
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    with pytest.raises(UsageError, match=r"missing 1 tensors: s1_fuse\.conv_f2s\.weight"):
        create("slowfast", path, **narrow)


def test_a_wrong_number_of_classes_is_named() -> None:
    state = create("slowfast", divisor=32, classes=7).net.state_dict()
    with pytest.raises(UsageError, match=r"head\.projection\.weight is \(7, .*expected \(400"):
        create("slowfast", state, divisor=32)


def test_centred_sampling_takes_every_second_frame_around_the_clip_centre() -> None:
    backbone = create("slowfast", preset="tiny", calibrated=False)
    times = backbone.clip_times(np.array([0.0, 10.0]), 2.0)
    # 64 frames at 30 fps around 11 s: output frames 298, 300, ..., 360 of the fps filter.
    np.testing.assert_allclose(times[1], (np.arange(298, 361, 2) + 0.5) / 30)
    # At the start of the video the first frame is repeated.
    assert times[0][0] == times[0][1] == 0.5 / 30
    assert times.shape == (2, 32)


def native_index(case: dict[str, Any], times: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    base = Fraction(case["time_base"])
    pts = case["pts"]
    ticks = pts.get("list") or [pts["first"] + i * pts["step"] for i in range(pts["n"])]
    start = Fraction(case["container_start_time"])
    at = np.array([float(tick * base - start) for tick in ticks])
    return np.maximum(np.searchsorted(at, times - 1e-6, side="left") - 1, 0)


def test_hero_sampling_selects_the_frames_of_the_public_extractor(goldens: Any) -> None:
    backbone = create("slowfast", preset="tiny", calibrated=False, sampling="hero")
    cases = goldens.meta("frame_sampling_slowfast")["cases"]
    for case in cases:
        base, pts = Fraction(case["time_base"]), case["pts"]
        last = pts["list"][-1] if "list" in pts else pts["first"] + pts["step"] * (pts["n"] - 1)
        end = (last + case["last_duration"]) * base - Fraction(case["container_start_time"])
        clip_len = float(Fraction(case["clip_len"]))
        times = backbone.clip_times(
            np.arange(len(case["clips"])) * clip_len,
            clip_len,
            native_fps=case["info_fps"],
            duration_s=float(end),
        )
        assert native_index(case, times).tolist() == case["clips"], case["name"]
    assert len(cases) == 13


def test_hero_sampling_without_the_native_rate_is_refused() -> None:
    backbone = create("slowfast", preset="tiny", calibrated=False, sampling="hero")
    with pytest.raises(UsageError, match="native_fps and duration_s"):
        backbone.clip_times(np.zeros(1), 2.0)


def test_an_unknown_sampling_is_refused() -> None:
    with pytest.raises(UsageError, match="allowed: centered, hero"):
        create("slowfast", sampling="random")


def test_the_full_network_has_the_published_number_of_parameters(official: SlowFastNet) -> None:
    assert sum(each.numel() for each in official.parameters()) == 34_566_488  # specs §2.2
    assert math.prod(official.head.projection.weight.shape) == 2304 * 400
