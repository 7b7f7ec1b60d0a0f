"""The text encoder of `narratives` and `queries`, as options, recipe and network."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.stages.clip_dims import clip_dims
from pipeline.stages.common import NetworkOptions, explaining_preset

if TYPE_CHECKING:
    from models.text import TextEncoder

__all__ = ["KNOWN_DIMS", "TextOptions", "build_encoder", "text_dims"]

KNOWN_DIMS: dict[tuple[str, str], tuple[int, int]] = {
    ("clip", "full"): (512, 512),
    ("clip", "tiny"): (64, 128),
    ("hash", "full"): (300, 300),
    ("hash", "tiny"): (64, 64),
}
"""(token states, pooled vector) by encoder and preset, so that a plan needs no network."""


class TextOptions(NetworkOptions):
    """Which text encoder a stage uses."""

    encoder: str = Field("clip", description="Name of the text encoder.")

    @property
    def params(self) -> dict[str, Any]:
        """What determines the states of a text: plain JSON for the recipe."""
        return {"name": self.encoder} | super().params


def build_encoder(options: TextOptions, device: str = "cpu") -> TextEncoder:
    """The encoder, on the device.

    Raises:
        UsageError: unknown name or option, or a checkpoint that does not fit.
    """
    from models.text import create

    where = {} if device == "cpu" else {"device": device}  # encoders without a network take none
    arguments = {"seed": options.seed, **where, **options.options}
    with explaining_preset(options):
        return create(options.encoder, options.checkpoint, preset=options.preset, **arguments)


def text_dims(options: TextOptions) -> tuple[int, int]:
    """Lengths of a token state and of the pooled vector; an unusual encoder is built to know."""
    known = KNOWN_DIMS.get((options.encoder, options.preset))
    usual = options.checkpoint is None or options.preset == "tiny" or options.encoder != "clip"
    if known is not None and usual and not options.options:
        return known
    if options.encoder == "clip":
        return clip_dims(options)
    return _built_dims(options.encoder, options.network_json)


@lru_cache
def _built_dims(encoder: str, network: str) -> tuple[int, int]:
    which = NetworkOptions.model_validate_json(network).model_dump()
    built = build_encoder(TextOptions(encoder=encoder, **which))
    return built.dim, built.pooled_dim
