"""`captions`: one caption per timestamp (TEA) or per clip of the grid (LMR), with its record.

A video is worked on in parts of `part_size` captions that the store joins, so that a kill costs
one part. Every caption keeps a record of how it came about; a bad one is flagged, never dropped:
what to do with it is for `narratives` to decide.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data.identity import canonical_json
from data.store.types import Row, Schema, StreamSpec
from data.video.types import FrameRequest, Mode, VideoFacts, View, Window
from pipeline.stage import STAGES, FrameStage, Item
from pipeline.stages.common import (
    Configured,
    WorkerOptions,
    built,
    facts_of,
    grid_of,
    pixels_params,
    weights_params,
)

if TYPE_CHECKING:
    from models.captioners import Captioner, CaptionResult, Sight

__all__ = ["CaptionsOptions", "CaptionsStage", "choose_instruction"]

_TOLERANCE_S = 1e-6  # a timestamp this close to the end of the video is its end


class CaptionsOptions(WorkerOptions):
    """Section `captions` of pipeline.yaml."""

    captioner: str = Field("pixel", description="Name of the captioner.")
    checkpoint: Path | None = Field(None, description="Weights of the captioner, if it has any.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the captioner."
    )
    prompt: str = Field("tea", description="Id of a prompt file; LMR's holds ten instructions.")
    seed: int = Field(0, ge=0, description="Seed of sampling and of the choice of instructions.")
    per: Literal["timestamp", "clip"] = Field(
        "timestamp", description="A caption every `every_s` seconds, or one for each clip."
    )
    every_s: float = Field(1.0, gt=0, description="Seconds between timestamps.")
    offset_s: float = Field(0.0, ge=0, description="The first timestamp.")
    frame_gap_s: float = Field(
        0.2, gt=0, description="Seconds between the frames of a timestamp, if there are several."
    )
    part_size: int = Field(64, ge=1, description="Captions that are kept and resumed together.")
    batch_size: int = Field(16, ge=1, description="Captions that are generated together.")


@STAGES.register("captions")
class CaptionsStage(Configured, FrameStage):
    """Captions with times and records, in parts."""

    name = "captions"
    Options: ClassVar[type[Any]] = CaptionsOptions
    options: CaptionsOptions
    _captioner: Captioner | None = None

    @property
    def schema(self) -> Schema:
        """`record` is one JSON object per caption."""
        return Schema({"time_s": StreamSpec((), "float64", "item")}, ("caption", "record"))

    def params(self) -> Mapping[str, Any]:
        """Everything but the batch size, with the words of the prompt.

        Raises:
            UsageError: no such captioner, prompt or checkpoint.
        """
        from models.captioners import CAPTIONERS, load_prompt

        captioner = CAPTIONERS.get(self.options.captioner)
        options = self.options.model_dump(
            mode="json", exclude={*WorkerOptions.model_fields, "batch_size", "checkpoint"}
        )
        weights = (
            weights_params(self.options.checkpoint, self.options.seed)
            if captioner.has_weights
            else {"kind": "none"}
        )
        prompt = load_prompt(self.options.prompt)
        words = {"weights": weights, "instructions": list(prompt.instructions)}
        return options | words | pixels_params(self.context)

    @property
    def batch_size(self) -> int:
        """Captions per call of `encode`."""
        return self.options.batch_size

    def parts(self, facts: VideoFacts | None) -> int:
        """As many as the captions of the video need."""
        if facts is None:
            return 1
        return math.ceil(len(self._starts_s(facts)) / self.options.part_size)

    def setup(self) -> None:
        """Build the captioner and read the prompt."""
        from models.captioners import create, load_prompt

        options = dict(self.options.options)
        self._captioner = create(
            self.options.captioner,
            self.options.checkpoint,
            seed=self.options.seed,
            device=self.context.device,
            **options,
        )
        self._prompt = load_prompt(self.options.prompt)

    def request(self, item: Item) -> FrameRequest:
        """The frames on the screen at each timestamp, or spread over each clip."""
        captioner = built(self._captioner, self.name)
        starts = self._of_part(item)
        offsets = captioner.offsets_s(
            clip_len_s=self.context.clip_len_s if self.options.per == "clip" else None,
            gap_s=self.options.frame_gap_s,
            fps=facts_of(item).fps,
        )
        view = _view(captioner.sight, self.context.decode_mode)
        return FrameRequest(self.name, starts[:, None] + offsets, view, inclusive=True)

    def encode(self, item: Item, windows: Sequence[Window]) -> Sequence[CaptionResult]:
        """One result per window."""
        from models.captioners import CaptionRequest

        starts = self._of_part(item)
        requests = [
            CaptionRequest(
                frames=window.frames,
                prompt=self._prompt.instructions[self._instruction(item, window.unit)],
                time_s=float(starts[window.unit]),
                key=f"{item.key.content}:{self._index(item, window.unit)}",
            )
            for window in windows
        ]
        return built(self._captioner, self.name).caption(requests)

    def finish(self, item: Item, results: Sequence[CaptionResult]) -> Row:
        """Texts and records of one part."""
        starts = self._of_part(item)
        if len(results) != len(starts):
            raise ValueError(f"{len(results)} captions for {len(starts)} timestamps of {item.key}")
        records = [self._record(item, unit, result) for unit, result in enumerate(results)]
        return Row(
            item.key,
            grid_of(item, self.context),
            {"time_s": starts},
            {"caption": [result.text for result in results], "record": records},
            {"captioner": dict(built(self._captioner, self.name).params())},
        )

    def _record(self, item: Item, unit: int, result: CaptionResult) -> str:
        return canonical_json(
            {
                "status": result.status,
                "finish_reason": result.finish_reason,
                "flags": list(result.flags),
                "attempts": result.attempts,
                "prompt": self.options.prompt,
                "instruction": self._instruction(item, unit),
                "prompt_tokens": result.prompt_tokens,
                "new_tokens": result.new_tokens,
            }
        )

    def _starts_s(self, facts: VideoFacts) -> NDArray[np.float64]:
        """Times of all captions of a video: `offset + i * every` before its end, at least one."""
        if self.options.per == "clip":
            return facts.grid(self.context.clip_len_s).starts_s
        room = facts.duration_s - self.options.offset_s - _TOLERANCE_S
        count = max(math.floor(room / self.options.every_s) + 1, 1)
        times = self.options.offset_s + self.options.every_s * np.arange(count)
        return times.astype(np.float64)

    def _of_part(self, item: Item) -> NDArray[np.float64]:
        first = self._index(item, 0)
        return self._starts_s(facts_of(item))[first : first + self.options.part_size]

    def _index(self, item: Item, unit: int) -> int:
        return item.key.part * self.options.part_size + unit

    def _instruction(self, item: Item, unit: int) -> int:
        index = self._index(item, unit)
        count = len(self._prompt.instructions)
        return choose_instruction(self.options.seed, item.key.content, index, count)


def _view(sight: Sight, mode: Mode) -> View:
    if sight.fit == "scaled" or sight.fit == "square":
        return View(sight.side, sight.fit == "square", mode)
    return View(sight.side, False, mode, sight.fit, sight.background)


def choose_instruction(seed: int, content: str, index: int, count: int) -> int:
    """Which of `count` instructions caption `index` of a video gets.

    By hash, so that the choice does not depend on order, worker or resume; by content, so that it
    survives a new name of the file (specs/tea_lmr_cqval_splits.md §3.2).
    """
    text = f"{seed}|{content}|{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % count
