from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UsageError
from models.backbones import create
from models.backbones.i3d import I3DNet, hassony2_name


def test_mixed_5c_and_features_equal_the_public_ones_on_filled_weights(goldens: Any) -> None:
    meta = goldens.meta("i3d_rgb_t16_64_cheap")
    shapes = {name: shape for name, shape, _ in meta["keys"]}
    weights = goldens.weights(shapes, meta["weights"]["gain"])
    backbone = create("i3d", weights, size=64, short_side=64)
    want = goldens.outputs("i3d_rgb_t16_64_cheap")
    for name in ("pub_a", "pub_b"):
        frames = goldens.frames(name, 16, 64, 64)
        batch = backbone.preprocess(torch.from_numpy(frames))
        got = backbone.net.feature_map(batch).mean((3, 4))
        expected = want[f"{name}/mixed_5c_spatial_mean"]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        # Two maps over time: the temporal pool of 2 and the mean over T' are their mean.
        np.testing.assert_allclose(
            backbone.encode(frames), expected.mean(axis=2), rtol=1e-4, atol=1e-4
        )


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


def test_a_checkpoint_of_the_charades_classes_needs_its_number_of_classes() -> None:
    state = create("i3d", divisor=8, classes=157).net.state_dict()
    with pytest.raises(UsageError, match=r"logits\.conv3d\.weight is \(157.*expected \(400"):
        create("i3d", state, divisor=8)
    create("i3d", state, divisor=8, classes=157)


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
