"""When the captions of a video are, in which part of the work, and what each is asked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from data.video.types import VideoFacts

__all__ = ["Slot", "Slots", "choose_instruction"]

_TOLERANCE_S = 1e-6  # a timestamp this close to the end of the video is its end


@dataclass(frozen=True)
class Slot:
    """One caption that is wanted of a video.

    Args:
        index: which of the video, from 0.
        start_s: its timestamp, or the start of its clip.
        end_s: end of its clip; None for a timestamp.
        instruction: which of the prompt's it is asked; None for a captioner that follows none.
    """

    index: int
    start_s: float
    end_s: float | None
    instruction: int | None


@dataclass(frozen=True)
class Slots:
    """The captions of videos.

    Args:
        per: one every `every_s` seconds from `offset_s`, or one for each clip of the grid.
        every_s, offset_s: seconds.
        clip_len_s: clip length of the grid.
        part_size: captions of one part.
        seed: of the choice of instructions.
        instructions: how many there are to choose from; 0 for a captioner that follows none.
    """

    per: Literal["timestamp", "clip"]
    every_s: float
    offset_s: float
    clip_len_s: float
    part_size: int
    seed: int
    instructions: int

    def count(self, facts: VideoFacts) -> int:
        """Captions of a video: timestamps before its end, at least one; or its clips."""
        if self.per == "clip":
            return facts.grid(self.clip_len_s).n
        room = facts.duration_s - self.offset_s - _TOLERANCE_S
        return max(math.floor(room / self.every_s) + 1, 1)

    def parts(self, facts: VideoFacts) -> int:
        """Into how many parts they are cut."""
        return math.ceil(self.count(facts) / self.part_size)

    def size(self, facts: VideoFacts, part: int) -> int:
        """Captions of one part."""
        return min(self.part_size, self.count(facts) - part * self.part_size)

    def of_part(self, content: str, facts: VideoFacts, part: int) -> list[Slot]:
        """Those of one part, in order."""
        first = part * self.part_size
        return [
            self._slot(content, index, *self._span_s(index))
            for index in range(first, first + self.size(facts, part))
        ]

    def at(self, content: str, times_s: Iterable[float]) -> list[Slot]:
        """Those of a video whose captions have times of their own."""
        return [self._slot(content, index, at, None) for index, at in enumerate(times_s)]

    def _span_s(self, index: int) -> tuple[float, float | None]:
        if self.per == "clip":
            start_s = index * self.clip_len_s
            return start_s, start_s + self.clip_len_s
        return self.offset_s + index * self.every_s, None

    def _slot(self, content: str, index: int, start_s: float, end_s: float | None) -> Slot:
        if not self.instructions:
            return Slot(index, start_s, end_s, None)
        chosen = choose_instruction(self.seed, content, index, self.instructions)
        return Slot(index, start_s, end_s, chosen)


def choose_instruction(seed: int, content: str, index: int, count: int) -> int:
    """Which of `count` instructions caption `index` of a video gets.

    By hash, so that the choice does not depend on order, worker or resume; by content, so that it
    survives a new name of the file (specs/tea_lmr_cqval_splits.md §3.2).
    """
    text = f"{seed}|{content}|{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % count
