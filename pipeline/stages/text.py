"""The text encoder of `narratives` and `queries`, as options, recipe and network."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import Field

from models.word_tables import KINDS, open_table
from pipeline.stages.clip_dims import clip_dims
from pipeline.stages.common import NetworkOptions, explaining_preset

if TYPE_CHECKING:
    from models.text import TextEncoder

__all__ = ["KNOWN_DIMS", "TextOptions", "build_encoder", "shares", "text_dims"]

KNOWN_DIMS: dict[tuple[str, str], tuple[int, int]] = {
    ("clip", "full"): (512, 512),
    ("clip", "tiny"): (64, 128),
    ("hash", "full"): (300, 300),
    ("hash", "tiny"): (64, 64),
}
"""(token states, pooled vector) by encoder and preset, so that a plan needs no network."""


class TextOptions(NetworkOptions):
    """Which text encoder a stage uses."""

    encoder: str = Field(
        "clip",
        description="Name of the text encoder: clip, glove, llama_embedding or hash "
        "(docs/narratives.md).",
    )

    @property
    def params(self) -> dict[str, Any]:
        """What determines the states of a text: plain JSON for the recipe.

        Raises:
            UsageError: unknown encoder or option; no such checkpoint, or one of another kind.
        """
        self._check()
        params = {"name": self.encoder} | super().params
        if self.encoder in KINDS:
            del params["preset"]  # a table has one size
        return params

    @property
    def told(self) -> str:
        """What its table holds, for people; "" for an encoder without one.

        Raises:
            UsageError: as `params`.
        """
        self._check()
        if self.encoder not in KINDS:
            return ""
        table = open_table(self.checkpoint, self.encoder)
        rows, dim = table.shape
        return f"{self.encoder}: {rows:,} vectors of {dim} numbers, {table.path}"

    def _check(self) -> None:
        """Before anything starts; without torch where everything is plain."""
        known = {name for name, _ in KNOWN_DIMS}
        if self.encoder in KINDS:
            open_table(self.checkpoint, self.encoder)
        if self.options or self.encoder not in {*known, *KINDS}:
            from models.options import check_options
            from models.text import TEXT_ENCODERS

            kind: Any = TEXT_ENCODERS.get(self.encoder)
            check_options(f"text encoder {self.encoder}", kind, self.options)


def build_encoder(options: TextOptions, device: str = "cpu") -> TextEncoder:
    """The encoder, on the device.

    Raises:
        UsageError: unknown name or option, or a checkpoint that does not fit.
    """
    from models.text import create

    where = {} if device == "cpu" else {"device": device}  # encoders without a network take none
    arguments = {"seed": options.seed, **where, **options.options}
    if options.encoder in KINDS:
        return create(options.encoder, options.checkpoint, **arguments)
    with explaining_preset(options):
        return create(options.encoder, options.checkpoint, preset=options.preset, **arguments)


def text_dims(options: TextOptions) -> tuple[int, int]:
    """Lengths of a token state and of the pooled vector; an unusual encoder is built to know."""
    if options.encoder in KINDS:
        _, dim = open_table(options.checkpoint, options.encoder).shape
        return dim, dim
    known = KNOWN_DIMS.get((options.encoder, options.preset))
    usual = options.checkpoint is None or options.preset == "tiny" or options.encoder != "clip"
    if known is not None and usual and not options.options:
        return known
    if options.encoder == "clip":
        return clip_dims(options)
    return _built_dims(options.encoder, options.network_json)


def shares(*counts: tuple[int, int, str]) -> list[str]:
    """`(1, 8, "words unknown")` as "12.5 % words unknown"; what does not occur is left out."""
    return [f"{100 * part / whole:.3g} % {what}" for part, whole, what in counts if part and whole]


@lru_cache
def _built_dims(encoder: str, network: str) -> tuple[int, int]:
    which = NetworkOptions.model_validate_json(network).model_dump()
    built = build_encoder(TextOptions(encoder=encoder, **which))
    return built.dim, built.pooled_dim
