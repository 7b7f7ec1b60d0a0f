"""`narratives`: the captions of a video, embedded and aligned to its grid (TEA Eq. 1 to 3).

Another text encoder or fill policy is another recipe of this stage only; captions are read from
the store and never made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from data.errors import InputError
from data.interop.captions import caption_line
from data.store.types import Row, Schema, StreamSpec
from pipeline.stage import STAGES, Inputs, Item, RowStage
from pipeline.stages.align import align
from pipeline.stages.caption_records import Judged
from pipeline.stages.common import Configured, built
from pipeline.stages.text import TextOptions, build_encoder, shares, text_dims

if TYPE_CHECKING:
    from models.text import CaptionVector, TextEncoder

__all__ = ["NarrativesOptions", "NarrativesStage"]


class NarrativesOptions(TextOptions):
    """Section `narratives` of pipeline.yaml."""

    fill: Literal["nearest", "hold", "linear", "zero"] = Field(
        "nearest", description="What a clip without captions gets."
    )
    flagged: Literal["use", "skip"] = Field(
        "use", description="Captions with quality flags: used like others, or taken as missing."
    )
    spans: Literal["use", "ignore"] = Field(
        "use",
        description="Captions that know their end (of clips, events): they count for every clip "
        "that they touch, or for that of their start alone. Others have no span.",
    )
    keep_punct: bool | None = Field(
        None,
        description="Whether signs count as words of a caption; null: as the encoder's source has "
        "it (clip and llama_embedding keep them, glove drops them).",
    )


_REMEMBERED = 2048
"""Captions whose vectors are kept: 32 MB of 4096-d vectors."""


@dataclass(frozen=True)
class _Said:
    """One caption that counts; `end_s` is its time where it has no span."""

    time_s: float
    end_s: float
    text: str
    embedded: CaptionVector


@STAGES.register("narratives")
class NarrativesStage(Configured, RowStage):
    """One float16 vector and a coverage mark per clip; the paragraph as `t: caption` lines.

    Facts of a row: `captions`, `used` of them, of these `truncated` (words at the end of a sentence
    did not fit the encoder), `words` of the used ones and `unknown_words` (that the encoder has no
    vector for); `clips`, and `covered_clips` that hold a caption of their own.
    """

    name = "narratives"
    version = 2  # facts of words; captions of one time are averaged before they fill; spans
    reads = ("captions",)
    summed = ("captions", "used", "truncated", "words", "unknown_words", "clips", "covered_clips")
    remarked = summed
    stream: ClassVar[str] = "narrative"
    Options: ClassVar[type[Any]] = NarrativesOptions
    options: NarrativesOptions
    _embed: Callable[[str], CaptionVector | None] | None = None

    @property
    def schema(self) -> Schema:
        """`narrative` (N, D), `coverage` (N,), and the lines of the paragraph."""
        return Schema(
            {
                "narrative": StreamSpec((text_dims(self.options)[0],), "float16", "clip"),
                "coverage": StreamSpec((), "uint8", "clip"),
            },
            ("paragraph",),
        )

    def params(self) -> Mapping[str, Any]:
        """Encoder, fill policy, and what happens to flagged captions, to spans and to signs."""
        policies = self.options.model_dump(include={"fill", "flagged", "spans", "keep_punct"})
        return {"encoder": self.options.params} | policies

    @classmethod
    def remarks(cls, sums: Mapping[str, int]) -> list[str]:
        """Which share of clips was filled, and what the encoder lost."""
        return shares(
            (sums["clips"] - sums["covered_clips"], sums["clips"], "clips without a caption"),
            (sums["captions"] - sums["used"], sums["captions"], "captions not used"),
            (sums["truncated"], sums["used"], "captions truncated"),
            (sums["unknown_words"], sums["words"] + sums["unknown_words"], "words unknown"),
        )

    def setup(self) -> None:
        """Build the text encoder. Captions repeat, within a video and between videos."""
        encoder = build_encoder(self.options, self.context.device)
        self._embed = lru_cache(_REMEMBERED)(partial(_vector_of, encoder, self.options.keep_punct))

    def process(self, item: Item, inputs: Inputs) -> Row:
        """Captions of one video to its narrative.

        A caption without words, or with none that the encoder knows, counts as missing.

        Raises:
            InputError: `words-not-looked-up`, captions with words that the table of the encoder
                was not made for; `caption-record`, a record that is none of ours.
        """
        captions = inputs.row("captions")
        if captions.grid is None:
            raise ValueError(f"the captions of {item.key.id} come without a grid")
        said = list(self._said(captions))
        times, ends = np.array([(each.time_s, each.end_s) for each in said]).reshape(-1, 2).T
        dim, _ = text_dims(self.options)
        vectors = np.array([each.embedded.vector for each in said]).reshape(len(said), dim)
        narrative, coverage = align(times, vectors, captions.grid, self.options.fill, ends)
        facts = {
            "captions": len(captions["time_s"]),
            "used": len(said),
            "truncated": sum(each.embedded.truncated for each in said),
            "words": sum(each.embedded.words for each in said),
            "unknown_words": sum(len(each.embedded.unknown) for each in said),
            "clips": captions.grid.n,
            "covered_clips": int(coverage.sum()),
        }
        return Row(
            item.key,
            captions.grid,
            {"narrative": narrative.astype(np.float16), "coverage": coverage},
            {"paragraph": [caption_line(each.time_s, each.text) for each in said]},
            facts,
        )

    def _said(self, captions: Row) -> Iterator[_Said]:
        """The captions that count, in the order of the row."""
        embed = built(self._embed, self.name)
        columns = (captions["time_s"], captions.texts["caption"], captions.texts["record"])
        for time_s, text, record in zip(*columns, strict=True):
            judged = Judged.of(record)
            embedded = embed(text) if self._usable(judged) else None
            if embedded is not None:
                end_s = judged.end_s if self.options.spans == "use" else None
                yield _Said(float(time_s), max(time_s, end_s or 0.0), text, embedded)

    def _usable(self, judged: Judged) -> bool:
        skipped = ("failed", "flagged") if self.options.flagged == "skip" else ("failed",)
        return judged.status not in skipped


def _vector_of(encoder: TextEncoder, keep_punct: bool | None, text: str) -> CaptionVector | None:
    """The vector of a caption; None if it has no words, or none that are known."""
    try:
        found = encoder.caption_vector(text, keep_punct)
    except InputError as error:
        if error.reason != "no-text":
            raise
        return None
    return found if found.words else None
