"""The text encoder of `narratives` and `queries`, as options, recipe and network."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.stages.common import WorkerOptions, weights_params

if TYPE_CHECKING:
    from models.text import TextEncoder

__all__ = ["KNOWN_DIMS", "TextOptions", "build_encoder", "text_dims", "text_params"]

KNOWN_DIMS: dict[tuple[str, str], tuple[int, int]] = {
    ("clip", "full"): (512, 512),
    ("clip", "tiny"): (64, 128),
    ("hash", "full"): (300, 300),
    ("hash", "tiny"): (64, 64),
}
"""(token states, pooled vector) by encoder and preset, so that a plan needs no network."""


class TextOptions(WorkerOptions):
    """Which text encoder a stage uses."""

    encoder: str = Field("clip", description="Name of the text encoder.")
    preset: Literal["tiny", "full"] = Field(
        "tiny", description="`full` is the published architecture, `tiny` a narrow one."
    )
    checkpoint: Path | None = Field(
        None, description="Weights or table of the encoder; null: random weights from `seed`."
    )
    seed: int = Field(0, ge=0, description="Seed of random weights.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the encoder; they win over preset."
    )


_WHICH = {"encoder", "preset", "checkpoint", "seed", "options"}


def text_params(options: TextOptions) -> dict[str, Any]:
    """What determines the states of a text: plain JSON for the recipe."""
    return {
        "name": options.encoder,
        "preset": options.preset,
        "options": options.options,
        "weights": weights_params(options.checkpoint, options.seed),
    }


def build_encoder(options: TextOptions, device: str = "cpu") -> TextEncoder:
    """The encoder, on the device.

    Raises:
        UsageError: unknown name or option, or a checkpoint that does not fit.
    """
    from models.text import create

    return create(
        options.encoder,
        options.checkpoint,
        preset=options.preset,
        device=device,
        **{"seed": options.seed, **options.options},
    )


def text_dims(options: TextOptions) -> tuple[int, int]:
    """Lengths of a token state and of the pooled vector; an unusual encoder is built to know."""
    known = KNOWN_DIMS.get((options.encoder, options.preset))
    if known is not None and not options.options:
        return known
    return _built_dims(options.model_dump_json(include=_WHICH))


@lru_cache
def _built_dims(options: str) -> tuple[int, int]:
    encoder = build_encoder(TextOptions.model_validate_json(options))
    return encoder.dim, encoder.pooled_dim
