"""What every optical flow keeps."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from moving_texture import HEIGHT, WIDTH, frames, motion
from torch import Tensor

from data.errors import UsageError
from models.flow import FLOWS, Flow, create_flow

OPTIONS: dict[str, dict[str, Any]] = {"raft": {"model": "small", "updates": 2}}
COMPUTED = [name for name in FLOWS.names() if name != "none"]
every = pytest.mark.parametrize("name", COMPUTED)
dense = pytest.mark.parametrize("name", [name for name in COMPUTED if name != "raft"])
without_opencv = pytest.mark.skipif(
    find_spec("cv2") is not None, reason="OpenCV is installed: nothing is missing"
)


@cache
def flow_of(name: str) -> Flow:
    if name == "tvl1":
        pytest.importorskip("cv2.optflow", reason="needs opencv-contrib-python-headless")
    return create_flow(name, **OPTIONS.get(name, {}))


def clips(name: str, count: int = 3) -> Tensor:
    """(2, count, H, W, 3): one clip forwards, one backwards."""
    height, width = (HEIGHT, WIDTH) if name != "raft" else (122, 131)
    one = torch.from_numpy(frames(count, height, width))
    return torch.stack([one, one.flip(0)])


@every
def test_frames_of_clips_become_one_flow_less(name: str) -> None:
    given = clips(name)
    flow = flow_of(name)(given)
    assert flow.shape == (2, 2, 2, *given.shape[2:4])
    assert flow.dtype == torch.float32
    assert torch.isfinite(flow).all()


@every
def test_a_pair_has_the_same_flow_in_any_company(name: str) -> None:
    given, flow = clips(name), flow_of(name)
    together = flow(given)
    alone = flow(given[1:, 1:])[0, :, 0]
    # Sums run in another order in another batch; a stopping rule may then stop one step later.
    assert float((together[1, :, 1] - alone).abs().max()) < 2e-3
    chunk, flow.chunk = flow.chunk, 1
    one_by_one = flow(given)
    flow.chunk = chunk
    assert float((together - one_by_one).abs().max()) < 2e-3


@every
def test_twice_is_the_same_to_the_bit(name: str) -> None:
    assert torch.equal(flow_of(name)(clips(name)), flow_of(name)(clips(name)))


@dense
def test_a_known_motion_is_found_first_to_the_right_then_down(name: str) -> None:
    flow = flow_of(name)(clips(name))[0].numpy()
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    truth = np.stack(motion(x, y))
    away = np.linalg.norm(flow - truth[:, None], axis=0)[:, 8:-8, 8:-8]
    assert away.mean() < 0.06  # OpenCV's: 0.051
    assert np.linalg.norm(truth, axis=0).mean() > 1.5


@dense
def test_what_stands_still_has_no_flow(name: str) -> None:
    still = clips(name)[:, :1].repeat(1, 2, 1, 1, 1)
    assert float(flow_of(name)(still).abs().max()) == 0.0


@every
def test_params_are_plain_json_and_name_the_flow(name: str) -> None:
    assert json.loads(json.dumps(flow_of(name).params()))["flow"] == name


@every
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (torch.zeros(1, 2, 8, 8, 3), "needs uint8 RGB frames .* got torch.float32"),
        (torch.zeros(1, 3, 2, 130, 130, dtype=torch.uint8), r"got torch.uint8 \(1, 3, 2, 130, 130"),
        (torch.zeros(1, 1, 130, 130, 3, dtype=torch.uint8), "two frames or more, got 1"),
        (torch.zeros(1, 2, 15, 130, 3, dtype=torch.uint8), "got 15x130"),
    ],
)
def test_other_frames_are_refused(name: str, given: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        flow_of(name)(given)


def test_no_flow_says_how_to_get_one() -> None:
    with pytest.raises(UsageError, match="say one of: raft, tvl1, tvl1-torch"):
        create_flow("none")(clips("tvl1"))
    assert create_flow("none").params() == {"flow": "none"}


def test_names_options_and_checkpoints_are_checked() -> None:
    with pytest.raises(UsageError, match="unknown optical flow 'tvl-1'; did you mean 'tvl1'"):
        create_flow("tvl-1")
    with pytest.raises(UsageError, match="unknown option 'warp'; did you mean 'warps'"):
        create_flow("tvl1-torch", warp=1)
    with pytest.raises(UsageError, match="chunk 0; give 1 or more"):
        create_flow("tvl1-torch", chunk=0)
    with pytest.raises(UsageError, match="tvl1-torch is no network and takes no checkpoint"):
        create_flow("tvl1-torch", {"weight": torch.zeros(1)})


@without_opencv
def test_a_missing_opencv_is_a_sentence_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"'\.\[flow\]' in a checkout.*flow: tvl1-torch"):
        create_flow("tvl1")
