from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UsageError
from models.backbones import create
from models.backbones.vgg import VggNet
from models.compat import ensure_torchvision


@pytest.fixture(scope="module")
def torchvision_vgg() -> Any:
    """torchvision's own VGG16 (BSD-3), on weights that its constructor draws from a seed."""
    if ensure_torchvision() == "absent":
        pytest.skip("torchvision, which these features are compared with, is not installed")
    from torchvision.models import vgg16

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return vgg16(weights=None).eval()


def test_fc7_and_scores_equal_those_of_torchvision(torchvision_vgg: Any) -> None:
    ours = create("vgg", torchvision_vgg.state_dict())
    assert (ours.weights.layout, ours.dim) == ("torchvision", 4096)
    batch = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = torchvision_vgg.avgpool(torchvision_vgg.features(batch)).flatten(1)
        fc7 = torchvision_vgg.classifier[:5](features)
        np.testing.assert_allclose(ours(batch), fc7, rtol=1e-4, atol=1e-5)
        scores = torchvision_vgg(batch)
        np.testing.assert_allclose(ours.net.logits(ours(batch)), scores, rtol=1e-4, atol=1e-5)


def test_names_and_shapes_are_those_of_torchvision(torchvision_vgg: Any) -> None:
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in VggNet().state_dict().items()}
    assert ours == {name: tuple(v.shape) for name, v in torchvision_vgg.state_dict().items()}


def test_pictures_are_normalised_with_the_constants_of_imagenet() -> None:
    backbone = create("vgg", preset="tiny", calibrated=False)
    batch = backbone.preprocess(torch.full((2, 1, 64, 96, 3), 255, dtype=torch.uint8))
    assert batch.shape == (2, 3, 64, 64)
    # torchvision's transform: (1 - mean) / std
    np.testing.assert_allclose(batch[0, :, 5, 5], [2.2489, 2.4286, 2.64], atol=1e-4)


def test_several_frames_of_a_clip_are_spread_evenly_and_averaged() -> None:
    four = create("vgg", preset="tiny", calibrated=False, frames=4)
    one = create("vgg", preset="tiny", calibrated=False)
    assert four.clip_times(np.array([0.0, 2.0]), 2.0)[1].tolist() == [2.25, 2.75, 3.25, 3.75]
    assert one.clip_times(np.array([0.0, 2.0]), 2.0).tolist() == [[1.0], [3.0]]
    frames = np.random.default_rng(1).integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)
    alone = np.stack([one.encode(frames[:, [index]]) for index in range(4)])
    np.testing.assert_allclose(four.encode(frames), alone.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert four.params()["frames"] == 4


@pytest.mark.parametrize("options", [{"frames": 0}, {"size": 31}, {"short_side": 63, "size": 64}])
def test_impossible_pictures_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"vgg: frames .* size .* short_side"):
        create("vgg", preset="tiny", **options)


def test_the_number_of_classes_is_that_of_the_checkpoint() -> None:
    state = create("vgg", preset="tiny", calibrated=False, classes=157).net.state_dict()
    with pytest.raises(UsageError, match=r"classifier\.6|157"):
        create("vgg", state, preset="tiny")
    assert create("vgg", state, preset="tiny", classes=157).net.logits(torch.zeros(1, 256)).shape
