from __future__ import annotations

import numpy as np
import torch

from models.calibration import Standardise, draw_shape, moving_shapes


def features(noise: float = 0.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=random) * torch.tensor([1, 10, 0.1, 3, 1, 0.0]) + 5
    return x + noise * torch.randn(x.shape, generator=random)


def test_measured_outputs_have_about_zero_mean_and_unit_variance() -> None:
    out = Standardise.measured(features())(features())
    assert out.mean(dim=0).abs().max() < 0.1
    assert torch.allclose(out.std(dim=0)[:5], torch.ones(5), atol=0.1)


def test_a_dimension_that_does_not_vary_is_not_blown_up() -> None:
    out = Standardise.measured(features())(features(noise=1e-6))
    assert out[:, 5].abs().max() < 0.1


def test_the_constants_do_not_depend_on_the_last_bits_of_the_features() -> None:
    one, other = Standardise.measured(features()), Standardise.measured(features(noise=1e-7))
    assert torch.equal(one.scale, other.scale)
    assert torch.equal(one.mean, other.mean)


def test_drawings_are_seeded_and_show_motion() -> None:
    video = moving_shapes(3, clips=6, frames=4, size=32)
    assert video.shape == (6, 4, 32, 32, 3)
    assert np.array_equal(video, moving_shapes(3, clips=6, frames=4, size=32))
    assert not np.array_equal(video, moving_shapes(4, clips=6, frames=4, size=32))
    moved = [not np.array_equal(clip[0], clip[-1]) for clip in video]
    assert any(moved)


def test_a_shape_is_painted_where_it_is_asked_for() -> None:
    picture = np.zeros((20, 20, 3), dtype=np.uint8)
    draw_shape(picture, "circle", np.array([9, 8, 7], dtype=np.uint8), (5.0, 15.0), 4.0)
    rows, columns = np.nonzero(picture[..., 0])
    assert (columns.mean(), rows.mean()) == (5.0, 15.0)
    assert picture[15, 5].tolist() == [9, 8, 7]
