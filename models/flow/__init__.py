"""Optical flow for the second stream of I3D.

FLOWS           all flows, by name: tvl1 (OpenCV), tvl1-torch, raft, none
create_flow     one of them, by name, checkpoint and options
SCALINGS        from pixels to what a network was trained on, by name
"""

from __future__ import annotations

from typing import Any

from data.errors import UsageError
from models.flow import raft, tvl1_opencv, tvl1_torch  # noqa: F401  (each adds itself to FLOWS)
from models.flow.base import FLOWS, Flow
from models.flow.scaling import SCALINGS
from models.options import check_options
from models.weights import Checkpoint

__all__ = ["FLOWS", "SCALINGS", "Flow", "create_flow"]


def create_flow(name: str, checkpoint: Checkpoint | None = None, **options: Any) -> Flow:
    """An optical flow, frozen and in evaluation mode.

    Args:
        name: of the flow.
        checkpoint: path or state dict, for flows that are networks; None gives seeded random
            weights, which `params()` says.
        options: of the flow's constructor.

    Raises:
        UsageError: unknown name or option, a checkpoint where there is no network, a checkpoint
            that does not fit, or a library that is missing.
    """
    kind: Any = FLOWS.get(name)
    check_options(f"flow {name}", kind, options)
    if checkpoint is None:
        flow: Flow = kind(**options)
    elif not kind.is_network:
        raise UsageError(
            f"flow {name} is no network and takes no checkpoint, got one; leave `flow_checkpoint` "
            "out, or say flow: raft"
        )
    else:
        flow = kind(checkpoint, **options)
    return flow.eval().requires_grad_(False)
