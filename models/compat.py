"""Remedy for a torchvision that cannot load its C library, in one place.

torchvision on PyPI is built for CUDA. Beside a CPU build of torch its C library does not load, and
`import torchvision` fails with "operator torchvision::nms does not exist"; `open_clip`, `timm` and
`transformers.CLIPModel` fail with it (specs/feature_extractors.md §4; pytorch/vision #9077, #9085).
Nothing in Storyline uses the operators of torchvision, so declaring the two that it expects at
import is enough.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Literal

import torch

__all__ = ["TorchvisionState", "ensure_torchvision"]

TorchvisionState = Literal["real", "stubbed", "absent"]

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept_alive: list[torch.library.Library] = []


@cache
def ensure_torchvision() -> TorchvisionState:
    """Make `import torchvision` work; call before importing open_clip, timm or transformers.

    Returns:
        "real" if its C library works, "stubbed" if its operators were declared without code,
        "absent" if torchvision is not installed.
    """
    if sys.modules.get("torchvision") is not None:
        return "real"
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return "absent"
    if _loads(Path(spec.origin).parent):
        return "real"
    # A fragment adds to a namespace that the real library may also define later, and its
    # operators live only as long as the object does.
    fragment = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        fragment.define(name + _SIGNATURE)  # type: ignore[no-untyped-call]
    _kept_alive.append(fragment)
    return "stubbed"


def _loads(folder: Path) -> bool:
    for library in sorted([*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            return False
    return hasattr(torch.ops.torchvision, "nms")
