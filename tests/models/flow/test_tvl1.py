"""TV-L1 against OpenCV's numbers (README.md here), and against OpenCV where it is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_texture import frames

from data.errors import UsageError
from models.flow import create_flow, tvl1_torch
from models.flow.tvl1_torch import _middle, _resized

GOLDEN = json.loads((Path(__file__).parent / "tvl1.json").read_text())


def pixels_apart(one: Any, other: Any, axis: int) -> np.ndarray[Any, Any]:
    apart: np.ndarray[Any, Any] = np.linalg.norm(np.asarray(one) - np.asarray(other), axis=axis)
    return apart


def test_the_flow_is_that_of_opencv() -> None:
    flow = create_flow("tvl1-torch")(torch.from_numpy(frames(3))[None])[0]
    apart = pixels_apart(flow.transpose(0, 1)[:, :, 5::16, 3::16], GOLDEN["flow"], axis=1)
    assert apart.mean() < 0.001  # 0.0002 where this was written
    assert apart.max() < 0.03


def test_a_missing_opencv_is_told_with_the_command_of_a_checkout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its name alone the distribution would be looked for in a registry (`how_to_install`)."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        UsageError, match=r"-c constraints\.txt '\.\[flow\]'.*or say flow: tvl1-torch"
    ):
        create_flow("tvl1")


def test_both_agree_on_real_frames(shared: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-contrib-python-headless")
    av = pytest.importorskip("av")
    with av.open(str(shared / "media/bt709_full_range.mp4")) as container:
        decoded = container.decode(video=0)
        pictures = [next(decoded).to_ndarray(format="rgb24") for _ in range(22)][20:]
    small = np.stack([cv2.resize(picture, (170, 128)) for picture in pictures])
    given = torch.from_numpy(small)[None]
    flows = [create_flow(name)(given)[0, :, 0].numpy() for name in ("tvl1", "tvl1-torch")]
    apart = pixels_apart(*flows, axis=0)
    assert np.linalg.norm(flows[0], axis=0).mean() > 0.3
    assert apart.mean() < 0.02
    assert np.quantile(apart, 0.95) < 0.1


def test_threads_of_opencv_change_nothing() -> None:
    pytest.importorskip("cv2.optflow", reason="needs opencv-contrib-python-headless")
    given = torch.from_numpy(frames(3))[None]
    one, four = (create_flow("tvl1", threads=count)(given) for count in (1, 4))
    assert torch.equal(one, four)


def test_a_pair_that_rests_costs_nothing_while_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, sizes = tvl1_torch._step, []

    def counted(flow: torch.Tensor, *others: Any) -> Any:
        sizes.append(len(flow))
        return step(flow, *others)

    monkeypatch.setattr(tvl1_torch, "_step", counted)
    moving = torch.from_numpy(frames(2, 48, 48))
    flow = create_flow("tvl1-torch", scales=2)
    flow(moving[None])
    alone = len(sizes)
    sizes.clear()
    flow(torch.stack([moving, moving[:1].expand_as(moving)]))
    assert set(sizes) == {1, 2}
    assert len(sizes) == alone
    assert sizes.count(2) < alone / 4


def test_fewer_steps_are_a_coarser_flow() -> None:
    given = torch.from_numpy(frames(2))[None]
    full, quick = create_flow("tvl1-torch"), create_flow("tvl1-torch", scales=2, warps=1, outer=1)
    away = (full(given) - quick(given)).abs().mean()
    assert 0.02 < float(away) < 1.0
    assert quick.params()["warps"] == 1


@pytest.mark.parametrize("count", [9, 25])
def test_the_median_by_forgetting_is_the_median(count: int) -> None:
    values = torch.from_numpy(np.random.Generator(np.random.PCG64(1)).normal(size=(count, 50, 7)))
    assert torch.equal(_middle(list(values)), values.median(dim=0).values)


def test_pictures_are_resized_with_pixel_centres_at_halves() -> None:
    ramp = torch.arange(10.0)[None, None, None, :].repeat(1, 1, 2, 1)
    # (i + 1/2) * 1.25 - 1/2 for i = 0..7
    expected = torch.tensor([0.125, 1.375, 2.625, 3.875, 5.125, 6.375, 7.625, 8.875])
    torch.testing.assert_close(_resized(ramp, 2, 8, 1.25)[0, 0, 0], expected)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"warps": 0}, "warps 0; give 1 or more"),
        ({"tau": 0.0}, "tau 0.0; give more than 0"),
        ({"scale_step": 1.0}, "scale_step 1.0; give one between 0 and 1"),
        ({"median": 4}, r"median 4; allowed: 1 \(none\), 3, 5"),
    ],
)
def test_settings_without_meaning_are_refused(option: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        create_flow("tvl1-torch", **option)
