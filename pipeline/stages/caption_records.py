"""What is written about a caption: its record in the row, and what is kept of an unfinished part.

A record holds only what can be the same in every run: no host, no date, no duration. What the
captioner was (model, dtype, library, device) stands once per row, in its facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from data.errors import InputError
from data.foreign import strict_json
from data.identity import canonical_json
from models.captioners.base import CaptionResult, Status
from pipeline.stages.caption_slots import Slot

__all__ = [
    "COUNTS",
    "Judged",
    "Made",
    "Part",
    "counts_of",
    "joined",
    "kept_text",
    "record_of",
    "told_lost",
]

COUNTS = ("captions", "new_tokens", "prompt_tokens", "reused", "flagged", "failed")
"""Facts of a row of captions that are summed while the stage runs."""

_DIGITS = 6
"""Of times in records: microseconds, what the decoder tells apart."""


@dataclass(frozen=True)
class Made:
    """One caption of a part, on its way to the row.

    Args:
        input: `caption_reuse.input_hash` of the pictures; "" where none were looked at.
        frames_s: when they are in the video, as decoded.
        result: the caption; None while it is that of another unit.
        source: the unit of the part whose caption serves; None for one of its own.
        bits: how far the pictures are from those of `source`.
    """

    input: str = ""
    frames_s: tuple[float, ...] = ()
    result: CaptionResult | None = None
    source: int | None = None
    bits: int = 0

    @property
    def lost(self) -> bool:
        """Whether the captioner could not be asked; asked again it may answer."""
        return self.result is not None and self.result.finish_reason == "error"


def joined(made: Sequence[Made]) -> list[Made]:
    """The captions of a part, those of other units in place. Nothing was generated for these."""
    return [
        each if each.source is None else replace(each, result=_shared(each, made)) for each in made
    ]


def _shared(each: Made, made: Sequence[Made]) -> CaptionResult:
    source = None if each.source is None else made[each.source].result
    if source is None:
        raise ValueError(f"unit {each.source} has no caption to share")
    return replace(source, prompt_tokens=0, new_tokens=0, attempts=0)


def counts_of(made: Sequence[Made]) -> dict[str, int]:
    """`COUNTS` of a part whose captions are joined."""
    results = [each.result for each in made if each.result is not None]
    numbers = (
        len(made),
        sum(each.new_tokens for each in results),
        sum(each.prompt_tokens for each in results),
        sum(each.source is not None for each in made),
        sum(each.status == "flagged" for each in results),
        sum(each.status == "failed" for each in results),
    )
    return dict(zip(COUNTS, numbers, strict=True))


def record_of(made: Made, slot: Slot, asked: Mapping[str, Any], first: int = 0) -> str:
    """The record of one caption, as JSON. Fields that say nothing are left out.

    Args:
        made: the caption.
        slot: what was wanted.
        asked: what is the same for all: the id of the prompt, the seed.
        first: index in the video of unit 0 of the part.
    """
    result = made.result
    if result is None:
        raise ValueError(f"caption {slot.index} was not made")
    always: dict[str, Any] = {
        **asked,
        "status": result.status,
        "finish_reason": result.finish_reason,
        "flags": list(result.flags),
        "attempts": result.attempts,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": result.new_tokens,
        "start_s": round(slot.start_s, _DIGITS),
    }
    sometimes: dict[str, Any] = {
        "reason": result.reason or None,
        "raw": result.raw or None,
        "taken": result.taken if result.attempts > 1 else None,
        "instruction": slot.instruction,
        "end_s": _rounded(slot.end_s if result.end_s is None else result.end_s),
        "frames_s": [round(each, _DIGITS) for each in made.frames_s] or None,
        "input": made.input or None,
        "reused_from": None if made.source is None else first + made.source,
        "distance": None if made.source is None else made.bits,
    }
    return canonical_json(always | {k: v for k, v in sometimes.items() if v is not None})


def _rounded(time_s: float | None) -> float | None:
    return None if time_s is None else round(time_s, _DIGITS)


@dataclass(frozen=True)
class Judged:
    """What is read of a record: whether the caption counts, and until when.

    Args:
        status: see `CaptionResult`.
        end_s: end of its span in seconds; None if it has none.
    """

    status: Status
    end_s: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @staticmethod
    def of(record: str) -> Judged:
        """Out of the JSON that `record_of` wrote, or an earlier version, or a stranger.

        Raises:
            InputError: `caption-record`, it is none.
        """
        try:
            return _Judged.validate_python(strict_json(record))
        except ValueError as error:  # a ValidationError is one
            raise InputError(
                "caption-record",
                f"the record of a caption cannot be read ({_first_line(error)}): {record:.200}; "
                "caption this video again",
            ) from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


_Judged = TypeAdapter(Judged)
_Kept = TypeAdapter(list[Made | None])


def kept_text(made: Sequence[Made]) -> str:
    """What is kept of a part that is not finished: null where a caption must be asked for again.

    Units that share a lost caption stay without one, and get the new one.
    """
    kept = [None if each.lost and each.source is None else each for each in made]
    return _Kept.dump_json(kept, exclude_defaults=True).decode()


@dataclass(frozen=True)
class Part:
    """One part of a video: what is wanted, and what an earlier attempt has left.

    Args:
        slots: its captions, in order.
        kept: those that are there already.
    """

    slots: Sequence[Slot]
    kept: Sequence[Made | None]

    @staticmethod
    def of(slots: Sequence[Slot], kept: str) -> Part:
        """With what `kept_text` gave; nothing of text that does not fit, for it comes out of a
        file: the captions are then made again.
        """
        nothing = [None] * len(slots)
        try:
            found = _Kept.validate_python(strict_json(kept, whole=True)) if kept else nothing
        except ValueError:  # a ValidationError is one
            found = nothing
        fits = len(found) == len(slots) and all(_fits(i, one, found) for i, one in enumerate(found))
        return Part(slots, found if fits else nothing)

    @cached_property
    def wanted(self) -> list[int]:
        """Units that are to be captioned; the windows of the part's request count these."""
        return [unit for unit, each in enumerate(self.kept) if each is None]

    def slot_of(self, window: int) -> Slot:
        """What the window of a unit of the request is for."""
        return self.slots[self.wanted[window]]

    @property
    def is_new(self) -> bool:
        """Whether nothing was kept."""
        return len(self.wanted) == len(self.slots)

    def with_fresh(self, results: Sequence[Made]) -> list[Made]:
        """All captions of the part; `results` are those of `wanted`."""
        if len(results) != len(self.wanted):
            raise ValueError(f"{len(results)} captions for {len(self.wanted)} units of a part")
        fresh = iter(results)
        return [next(fresh) if each is None else each for each in self.kept]


def _fits(unit: int, each: Made | None, kept: Sequence[Made | None]) -> bool:
    """Whether a caption is to be made, is there, or is shared with an earlier unit that has one."""
    if each is None:
        return True
    if each.source is None:
        return each.result is not None and not each.lost
    if not 0 <= each.source < unit:
        return False
    source = kept[each.source]
    return source is None or source.source is None


def told_lost(video: str, made: Sequence[Made], slots: Sequence[Slot]) -> str:
    """What is missing of a part, and what can be done."""
    lost = [slot for slot, each in zip(slots, made, strict=True) if each.lost]
    reasons = (each.result.reason for each in made if each.lost and each.result is not None)
    return (
        f"{len(lost)} of the {len(made)} captions from {slots[0].start_s:g} to "
        f"{slots[-1].start_s:g} s of '{video}' could not be made, the first at "
        f"{lost[0].start_s:g} s: {next(reasons, '') or 'no reason given'}. The others are kept: "
        "`pipeline run --stage captions --retry-failed` asks for these alone; with "
        "`stages.captions.failed: keep` it stores what there is then"
    )
