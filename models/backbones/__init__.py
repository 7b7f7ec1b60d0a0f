"""Networks that turn the frames of a clip into one feature vector.

BACKBONES       all of them, by name
create          one of them, by name, checkpoint and options
"""

from __future__ import annotations

from typing import Any

from data.errors import UsageError, nearest
from models.backbones import (  # noqa: F401  (each adds itself to BACKBONES)
    clip,
    i3d,
    i3d_flow,
    panns,
    slowfast,
    vgg,
)
from models.backbones.base import BACKBONES, Backbone
from models.options import check_options
from models.weights import Checkpoint

__all__ = ["BACKBONES", "Backbone", "create"]


def create(
    name: str,
    checkpoint: Checkpoint | None = None,
    *,
    preset: str = "full",
    device: str = "cpu",
    **options: Any,
) -> Backbone:
    """A frozen backbone in evaluation mode.

    Args:
        name: of the backbone.
        checkpoint: path or state dict in any layout that the backbone knows; None gives seeded
            random weights, which `weights.kind` and `params()` say.
        preset: a set of options: "full" is the published architecture, "tiny" the narrow and
            calibrated one of the embedded default.
        device: torch device of the weights.
        options: of the backbone's constructor; they win over the preset.

    Raises:
        UsageError: unknown name, preset or option, or a checkpoint that does not fit.
    """
    kind: Any = BACKBONES.get(name)
    if preset not in kind.PRESETS:
        raise UsageError(
            f"backbone {name}: unknown preset '{preset}'; {nearest(preset, kind.PRESETS)}"
        )
    check_options(f"backbone {name}", kind, options)
    backbone: Backbone = kind(checkpoint, **(kind.PRESETS[preset] | options))
    return backbone.to(device)
