"""Frozen text encoders: token states and pooled vectors of sentences, one vector of a caption.

TEXT_ENCODERS   all of them, by name
create          one of them, by name, checkpoint and options
"""

from __future__ import annotations

from typing import Any

from data.errors import UsageError, nearest
from models.options import check_options
from models.text import (  # noqa: F401  (each adds itself to TEXT_ENCODERS)
    clip,
    glove,
    hash,
    llama_embedding,
)
from models.text.base import TEXT_ENCODERS, CaptionVector, TextEncoder, TextStates
from models.weights import Checkpoint

__all__ = ["TEXT_ENCODERS", "CaptionVector", "TextEncoder", "TextStates", "create"]


def create(
    name: str, checkpoint: Checkpoint | None = None, *, preset: str = "full", **options: Any
) -> TextEncoder:
    """A frozen text encoder.

    Args:
        name: of the encoder.
        checkpoint: path or state dict in any layout that the encoder knows; None gives seeded
            random weights, which `weights.kind` and `params()` say. `glove` and `llama_embedding`
            want the path of their table (`models.word_tables`).
        preset: a set of options: "full" is the published architecture, "tiny" the narrow one of
            the embedded default.
        options: of the encoder's constructor; they win over the preset.

    Raises:
        UsageError: unknown name, preset or option, or a checkpoint that does not fit.
    """
    kind: Any = TEXT_ENCODERS.get(name)
    what = f"text encoder {name}"
    if preset not in kind.PRESETS:
        raise UsageError(f"{what}: unknown preset '{preset}'; {nearest(preset, kind.PRESETS)}")
    check_options(what, kind, options)
    encoder: TextEncoder = kind(checkpoint, **(kind.PRESETS[preset] | options))
    return encoder
