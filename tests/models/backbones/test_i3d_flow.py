from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UsageError
from models.backbones import create
from models.calibration import moving_shapes
from models.flow import SCALINGS, create_flow

QUICK = {"scales": 2, "warps": 1, "outer": 1, "inner": 5, "median": 1}


def small(**options: Any) -> Any:
    defaults = {"size": 64, "short_side": 80, "divisor": 8, "flow_options": QUICK}
    return create("i3d_flow", **(defaults | options))


def clip(height: int = 80, width: int = 96) -> Any:
    square = moving_shapes(0, 1, 17, 96)
    return square[:, :, :height, :width]


@pytest.mark.parametrize("scaling", ["deepmind", "v-iashin"])
def test_flow_is_computed_on_whole_frames_then_cropped_and_scaled(scaling: str) -> None:
    backbone = small(scaling=scaling)
    frames = torch.from_numpy(clip())
    batch = backbone.preprocess(frames)
    assert batch.shape == (1, 2, 16, 64, 64)
    flow = create_flow("tvl1-torch", **QUICK)(frames)[..., 8:72, 16:80]
    assert torch.equal(batch, SCALINGS.get(scaling)(flow))
    assert backbone.crop is False
    assert backbone.seen(clip()[0]).shape == (17, 80, 96, 3)


def test_a_window_takes_one_frame_more_than_the_rgb_stream() -> None:
    starts = np.arange(3) * 2.0
    for preset, length in (("grid", 2.0), ("vslnet", 0.5)):
        rgb = create("i3d", preset=preset, divisor=8).clip_times(starts, length, duration_s=6.0)
        flow = small(preset=preset).clip_times(starts, length, duration_s=6.0)
        np.testing.assert_array_equal(flow[:, :-1], rgb)
        assert flow.shape[1] == rgb.shape[1] + 1


def test_prepared_batches_give_what_the_network_of_two_channels_gives() -> None:
    backbone = small(flow="none", flow_options={})
    batch = torch.linspace(-1, 1, 2 * 16 * 64 * 64).reshape(1, 2, 16, 64, 64)
    state = backbone.net.state_dict()
    plain = create("i3d", state, in_channels=2, divisor=8, size=64, short_side=64)
    with torch.inference_mode():
        assert torch.equal(backbone(batch), plain(batch))
    with pytest.raises(UsageError, match="flow 'none' takes batches of flow that you prepared"):
        backbone.encode(clip())
    with pytest.raises(ValueError, match="the backbone 'i3d_flow' makes flow from frames"):
        plain.encode(clip())


def test_a_published_checkpoint_is_the_network_of_two_channels_whose_golden_is_tested(
    goldens: Any,
) -> None:
    meta = goldens.meta("i3d_flow_t16_224")
    shapes = {name: shape for name, shape, _ in meta["keys"]}
    weights = goldens.weights(shapes, meta["weights"]["gain"], meta["weights"]["salt"])
    backbone = create("i3d_flow", weights, flow="none")
    assert (backbone.weights.layout, backbone.dim) == ("piergiaj", 1024)
    assert backbone.weights.sha256 == create("i3d", weights, in_channels=2).weights.sha256


def test_weights_of_rgb_do_not_fit() -> None:
    state = create("i3d", divisor=8).net.state_dict()
    said = r"has 3 input channels, expected 2: it is an I3D for RGB \(backbone i3d\), not for optic"
    with pytest.raises(UsageError, match=said):
        small(checkpoint=state)
    with pytest.raises(UsageError, match="has 2 input channels, expected 3"):
        create("i3d", create("i3d", divisor=8, in_channels=2).net.state_dict(), divisor=8)


def test_another_flow_or_scaling_is_another_calibrated_network() -> None:
    tiny = {"preset": "tiny", "size": 32, "short_side": 32, "flow_options": QUICK}
    made = [
        create("i3d_flow", **tiny),
        create("i3d_flow", **tiny, scaling="v-iashin"),
        create("i3d_flow", **(tiny | {"flow_options": QUICK | {"warps": 2}})),
    ]
    assert len({each.weights.sha256 for each in made}) == 3
    assert made[0].params()["flow"]["warps"] == 1


def test_calibrated_features_of_other_drawings_are_about_one() -> None:
    backbone = create("i3d_flow", preset="tiny")
    features = np.abs(backbone.encode(moving_shapes(5, 8, 17, 64)))
    assert 0.2 < np.median(features) < 2
    assert features.max() < 30


def test_motion_tells_clips_apart_and_appearance_does_not() -> None:
    """A clip backwards looks the same frame by frame; its flow points the other way."""
    backbone = small()
    forwards = np.full((1, 17, 80, 96, 3), 60, np.uint8)
    for index, frame in enumerate(forwards[0]):
        frame[20:50, 10 + 3 * index : 40 + 3 * index] = (200, 90, 40)
    still = np.repeat(forwards[:, :1], 17, axis=1)
    brighter = np.clip(still.astype(int) + 30, 0, 255).astype(np.uint8)
    a, b, c, d = (
        backbone.encode(each)[0] for each in (forwards, forwards[:, ::-1], still, brighter)
    )
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(c, d)
