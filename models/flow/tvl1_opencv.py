"""TV-L1 optical flow of OpenCV, the reference of the flow that I3D was trained on.

DeepMind's README asks for "a TV-L1 algorithm" on grey frames and names no implementation; OpenCV's
DualTVL1OpticalFlow with its defaults is what the public tools take. It is part of OpenCV's contrib
modules and runs on CPUs only.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import UsageError, how_to_install
from models.flow.base import CHUNK, FLOWS, Flow

__all__ = ["OpenCVTVL1"]

_MISSING = (
    "flow tvl1 needs OpenCV with its contrib modules, which {problem}; install it: "
    f"{how_to_install('flow')} (opencv-contrib-python-headless; remove opencv-python and "
    "opencv-python-headless first, they hide it), or say flow: tvl1-torch, which needs nothing"
)


@FLOWS.register("tvl1")
class OpenCVTVL1(Flow):
    """TV-L1 by OpenCV, with its default parameters.

    OpenCV's own threads do little for pictures of this size, so pairs are spread over threads
    instead: OpenCV is told to use one thread of its own, for the whole process.

    Args:
        threads: pairs that are worked on at the same time; 0: as many as torch uses. It changes no
            result.
        chunk: pairs of frames that are handed over together.

    Raises:
        UsageError: OpenCV, or its contrib modules, are not installed.
    """

    name = "tvl1"
    min_side = 16

    def __init__(self, *, threads: int = 0, chunk: int = CHUNK) -> None:
        super().__init__(chunk)
        if threads < 0:
            raise UsageError(f"flow tvl1: threads {threads}; give 1 or more, or 0 for torch's")
        self.threads = threads
        _opencv()  # a missing library is told now, not at the first clip

    def params(self) -> dict[str, Any]:
        """See `Flow.params`; the version is that of the library that computes."""
        return {"flow": self.name, "opencv": _opencv().__version__}

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """See `Flow.between`."""
        _opencv().setNumThreads(1)
        with ThreadPoolExecutor(self.threads or torch.get_num_threads()) as pool:
            flows = list(pool.map(self._pair, first.cpu().numpy(), second.cpu().numpy()))
        return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(first.device)

    def _pair(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
        cv2 = _opencv()
        # Not shared between threads: it holds its pyramids.
        method = cv2.optflow.DualTVL1OpticalFlow_create()
        grey = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (first, second))
        flow: NDArray[np.float32] = method.calc(*grey, None)
        return flow


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UsageError(_MISSING.format(problem="is not installed")) from error
    if not hasattr(cv2, "optflow"):
        raise UsageError(_MISSING.format(problem=f"OpenCV {cv2.__version__} here lacks"))
    return cv2
