from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UsageError
from models.backbones import Backbone, create
from models.backbones.i3d import I3DNet, hassony2_name
from models.backbones.machine import prepared

slow = pytest.mark.slow

GOLDENS = [
    "i3d_rgb_t16_64_cheap",
    pytest.param("i3d_rgb_t16_224", marks=slow),
    pytest.param("i3d_flow_t16_224", marks=slow),
    pytest.param("i3d_rgb_t25_odd", marks=slow),
]
"""Full-size networks of piergiaj/pytorch-i3d; `odd` has 25 frames of 199x213 and 157 classes."""


def loaded(goldens: Any, meta: dict[str, Any]) -> Backbone:
    return create("i3d", goldens.state(meta), in_channels=meta["in_channels"])


def normalised(frames: np.ndarray[Any, Any]) -> torch.Tensor:
    """As the fixtures say it: no crop, `x / 255 * 2 - 1`, channels first."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1


def close(got: torch.Tensor, want: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", GOLDENS)
def test_every_layer_feature_and_logit_equals_the_public_one(goldens: Any, case: str) -> None:
    meta, want = goldens.meta(case), goldens.outputs(case)
    backbone = loaded(goldens, meta)
    net: I3DNet = backbone.net  # type: ignore[assignment]  # what I3D builds
    for name, frames in goldens.inputs(meta).items():
        batch = normalised(frames)
        public = meta["endpoints"][name]
        for (ours, out), (theirs, facts) in zip(net.endpoints(batch), public.items(), strict=True):
            assert ours == theirs or (ours.startswith("pool") and theirs.startswith("MaxPool"))
            assert list(out.shape) == facts["shape"]
            statistics = [out.mean(), out.std(correction=0), out.min(), out.max()]
            close(torch.stack(statistics), np.array(facts["mean_std_min_max"]))
            if (corner := f"{name}/slice/{theirs}") in want:
                close(out[0, :8, :2, :4, :4], want[corner])
        close(out.mean((3, 4)), want[f"{name}/mixed_5c_spatial_mean"])
        close(net.feature_map(batch), out.numpy())
        if f"{name}/feature" in want:  # the public pool does not fit on 64 pixels
            close(net.pooled(batch), want[f"{name}/avg_pool"])
            close(backbone(batch), want[f"{name}/feature"])
            close(net.classify(batch), want[f"{name}/logits"])


def test_small_pictures_are_pooled_over_what_there_is(goldens: Any) -> None:
    meta, want = goldens.meta(GOLDENS[0]), goldens.outputs(GOLDENS[0])
    backbone = create("i3d", goldens.state(meta), size=64, short_side=64)
    for name, frames in goldens.inputs(meta).items():
        # Two maps over time: the temporal pool of 2 and the mean over T' are their mean.
        mean = want[f"{name}/mixed_5c_spatial_mean"].mean(axis=2)
        np.testing.assert_allclose(backbone.encode(frames), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_prepared_for_the_machine_it_gives_the_public_features(
    goldens: Any, precision: str
) -> None:
    meta, want = goldens.meta(GOLDENS[0]), goldens.outputs(GOLDENS[0])
    ready = prepared(create("i3d", goldens.state(meta), size=64, short_side=64), precision)
    for name, frames in goldens.inputs(meta).items():
        got = ready.encode(frames)
        mean = want[f"{name}/mixed_5c_spatial_mean"].mean(axis=2)
        if precision == "float32":
            np.testing.assert_allclose(got, mean, rtol=1e-4, atol=1e-4)
        assert cosine(got, mean) > (0.9999999 if precision == "float32" else 0.9999)


def cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_names_follow_the_key_map(shared: Path) -> None:
    rows = json.loads((shared / "specs/extractor_keys/i3d_keys.json").read_text())
    shapes = {name: tuple(value.shape) for name, value in I3DNet().state_dict().items()}
    assert {row["piergiaj"]: tuple(row["shape"]) for row in rows} == shapes
    assert [hassony2_name(row["piergiaj"]) for row in rows] == [row["hassony2"] for row in rows]


def test_the_layout_of_hassony2_gives_the_same_network() -> None:
    made = create("i3d", divisor=8, classes=5)
    state = {hassony2_name(name): value for name, value in made.net.state_dict().items()}
    loaded = create("i3d", state, divisor=8, classes=5)
    assert loaded.weights.layout == "hassony2"
    assert loaded.weights.sha256 == made.weights.sha256


def test_files_of_both_public_layouts_load_without_counters(tmp_path: Path) -> None:
    made = create("i3d", divisor=8)
    state = made.net.state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("tracked")}
    torch.save(old, tmp_path / "rgb_imagenet.pt")
    torch.save({hassony2_name(k): v for k, v in state.items()}, tmp_path / "model_rgb.pth")
    for file, layout in (("rgb_imagenet.pt", "piergiaj"), ("model_rgb.pth", "hassony2")):
        loaded = create("i3d", tmp_path / file, divisor=8)
        assert (loaded.weights.layout, loaded.weights.source) == (layout, file)
        assert loaded.weights.sha256 == made.weights.sha256


def test_the_classes_of_published_checkpoints_need_not_be_said() -> None:
    for classes in (157, 400):
        state = create("i3d", divisor=8, classes=classes).net.state_dict()
        loaded = create("i3d", state, divisor=8)
        assert loaded.net.classify(torch.zeros(1, 3, 16, 32, 32)).shape == (1, classes, 1)
        assert torch.equal(
            loaded.net.state_dict()["logits.conv3d.weight"], state["logits.conv3d.weight"]
        )


def test_other_numbers_of_classes_are_errors_until_they_are_said() -> None:
    state = create("i3d", divisor=8, classes=101).net.state_dict()
    said = r"logits\.conv3d\.weight is \(101, .*expected 400 or 157 classes: .* has 101 classes"
    with pytest.raises(UsageError, match=said):
        create("i3d", state, divisor=8)
    with pytest.raises(UsageError, match=r"expected 157 classes.*or classes=101"):
        create("i3d", state, divisor=8, classes=157)
    with pytest.raises(UsageError, match="expected no classifier"):
        create("i3d", state, divisor=8, classes=0)
    assert create("i3d", state, divisor=8, classes=101).weights.kind == "file"


def test_windows_too_short_for_the_last_pool_are_refused() -> None:
    backbone = create("i3d", divisor=8, classes=0)
    assert backbone(torch.zeros(1, 3, 9, 32, 32)).shape == (1, 128)
    with pytest.raises(ValueError, match="at least 9 frames, got 8"):
        backbone(torch.zeros(1, 3, 8, 32, 32))


@pytest.mark.parametrize(("frames", "maps"), [(16, 1), (24, 2), (25, 3), (50, 6), (64, 7)])
def test_time_shrinks_as_with_padding_same(frames: int, maps: int) -> None:
    net = I3DNet(divisor=8, classes=0).eval()
    with torch.inference_mode():
        assert net.pooled(torch.zeros(1, 3, frames, 32, 32)).shape[2] == maps  # specs §2.3


def test_flow_networks_take_two_channels() -> None:
    backbone = create("i3d", preset="tiny", in_channels=2, calibrated=False)
    assert backbone(torch.zeros(1, 2, 16, 64, 64)).shape == (1, 128)


def test_the_window_is_centred_and_grows_with_the_clip() -> None:
    backbone = create("i3d", divisor=8)
    times = backbone.clip_times(np.array([4.0]), 2.0)
    np.testing.assert_allclose(times[0], (np.arange(100, 150) + 0.5) / 25)
    # 16 frames around 4.25 s = frame 106.25 of the 25 fps sequence.
    short = backbone.clip_times(np.array([4.0]), 0.5)
    np.testing.assert_allclose(short[0], (np.arange(98, 114) + 0.5) / 25)


def test_frames_are_cropped_at_the_centre_from_the_larger_short_side() -> None:
    backbone = create("i3d", divisor=8)
    assert (backbone.short_side, backbone.size) == (256, 224)
    frames = torch.zeros(1, 1, 256, 256, 3, dtype=torch.uint8)
    frames[..., 16:240, 16:240, :] = 255
    batch = backbone.preprocess(frames)
    assert batch.shape == (1, 3, 1, 224, 224)
    assert float(batch.min()) == 1.0
    with pytest.raises(ValueError, match="at least 224 pixels, got 200x256"):
        backbone.preprocess(torch.zeros(1, 1, 200, 256, 3, dtype=torch.uint8))


def test_a_divisor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="allowed: 1, 2, 4, 8"):
        create("i3d", divisor=3)
