"""`captions`: one caption per timestamp (TEA) or per clip of the grid (LMR), with its record.

A video is worked on in parts of `part_size` captions that the store joins, so that a kill costs
one part. Every caption keeps a record of how it came about; a bad one is flagged, never dropped:
what to do with it is for `narratives` to decide. A part of which some captions could not be asked
for goes to quarantine with the others kept, and only those are asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data.errors import InputError, UsageError
from data.store.types import Row, Schema, StreamSpec
from data.video.types import FrameRequest, Mode, VideoFacts, View, Window
from pipeline.stage import STAGES, FrameStage, Item, Resources, UnfinishedError
from pipeline.stages.caption_records import (
    COUNTS,
    Made,
    Part,
    counts_of,
    joined,
    kept_text,
    record_of,
    told_lost,
)
from pipeline.stages.caption_reuse import ReuseOptions, Reuser, input_hash
from pipeline.stages.caption_slots import Slot, Slots, choose_instruction
from pipeline.stages.common import (
    NAME_OR_FILE,
    Configured,
    WorkerOptions,
    built,
    check_gpu,
    facts_of,
    grid_of,
    pixels_params,
    weights_params,
)

if TYPE_CHECKING:
    from models.captioners import Captioner, CaptionRequest, Prompt, Sight
    from models.captioners.limits import Work

__all__ = ["CaptionsOptions", "CaptionsStage", "choose_instruction"]

_OF_THE_STAGE = ("seed", "device")
"""Arguments of every captioner that the stage gives."""


class CaptionsOptions(WorkerOptions):
    """Section `captions` of pipeline.yaml."""

    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto",
        description="GPUs of one worker; may be a fraction. auto: as many as the captioner asks "
        "for, which fills their memory; nothing where networks run on the CPU.",
    )
    captioner: str = Field("pixel", description="Name of the captioner.")
    checkpoint: Path | None = Field(None, description="Weights of the captioner, if it has any.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the captioner."
    )
    prompt: str = Field(
        "tea",
        json_schema_extra=NAME_OR_FILE,
        description="What is asked: tea, lmr, videochat, or a file of your own (FILE.txt) with one "
        "instruction per line.",
    )
    seed: int = Field(0, ge=0, description="Seed of sampling and of the choice of instructions.")
    per: Literal["timestamp", "clip"] = Field(
        "timestamp", description="A caption every `every_s` seconds, or one for each clip."
    )
    every_s: float = Field(1.0, ge=0.001, description="Seconds between timestamps.")
    offset_s: float = Field(0.0, ge=0, description="The first timestamp.")
    frame_gap_s: float = Field(
        0.2, gt=0, description="Seconds between the frames of a timestamp, if there are several."
    )
    part_size: int = Field(64, ge=1, description="Captions that are kept and resumed together.")
    batch_size: int = Field(64, ge=1, description="Captions that are generated together.")
    failed: Literal["quarantine", "keep"] = Field(
        "quarantine",
        description="Captions that could not be asked for (a server that fails): the part waits in "
        "quarantine until --retry-failed asks for them again, or is stored without them.",
    )
    reuse: ReuseOptions = Field(
        default_factory=ReuseOptions, description="Reuse for pictures that hardly differ."
    )


@STAGES.register("captions")
class CaptionsStage(Configured, FrameStage):
    """Captions with times and records, in parts."""

    name = "captions"
    version = 2
    commit_each = True
    shares_batches = True
    summed = COUNTS
    remarked = COUNTS
    inner_paths = frozenset({"path", "vision"})
    Options: ClassVar[type[Any]] = CaptionsOptions
    options: CaptionsOptions
    _captioner: Captioner | None = None
    _reuser: Reuser | None = None

    @classmethod
    def remarks(cls, sums: Mapping[str, int]) -> list[str]:
        """How many there are, and how many of them somebody may want to look at."""
        told = ("captions", "flagged", "failed", "reused")
        return [f"{sums[name]:,} {name}" for name in told if sums[name]]

    # --- before anything is decoded

    @property
    def schema(self) -> Schema:
        """`record` is one JSON object per caption."""
        return Schema({"time_s": StreamSpec((), "float64", "item")}, ("caption", "record"))

    def params(self) -> Mapping[str, Any]:
        """What determines the captions, and nothing that does not: of the times only those options
        that play a part, of the captioner's only those that are not about the machine, of the
        prompt its words. What becomes of captions that fail is not in it: they are no captions.

        Raises:
            UsageError: no such captioner, option, prompt or checkpoint.
        """
        self.check_options()
        kind, options = self._kind, self.options
        no_weights = {"kind": "none"}
        weights = (
            weights_params(options.checkpoint, options.seed) if kind.has_weights else no_weights
        )
        return {
            "captioner": options.captioner,
            "options": kind.recipe(options.options, options.checkpoint),
            "weights": weights,
            "seed": options.seed,
            **self._prompt_params,
            **self._times_params,
        }

    @property
    def _prompt_params(self) -> dict[str, Any]:
        if self._prompt is None:
            return {}
        return {"prompt": self._prompt.id, "instructions": list(self._prompt.instructions)}

    @property
    def _times_params(self) -> dict[str, Any]:
        options = self.options
        if self._kind.own_times:
            return {"per": "times of its own"}
        names = {"per", "part_size"}
        if options.per == "timestamp":
            names |= {"every_s", "offset_s", "frame_gap_s"}
        pixels = pixels_params(self.context)
        return {**options.model_dump(include=names), **options.reuse.params, **pixels}

    def check_options(self) -> None:
        """UsageError for what no captioner of that name takes; reads no weights."""
        from models.options import check_options, check_values

        kind, given = self._kind, self.options.options
        what = f"captioner {self.options.captioner}"
        for name in _OF_THE_STAGE:
            if name in given:
                raise UsageError(
                    f"stages.captions.options: '{name}' is none of the captioner's own options; "
                    "the seed is stages.captions.seed, the device is that of the whole config"
                )
        check_options(what, kind, given)
        check_values(what, kind, given)
        if self.options.checkpoint is not None and not kind.has_weights:
            raise UsageError(f"{what} has no weights; leave its checkpoint out")
        kind.recipe(given)

    @property
    def _kind(self) -> type[Captioner]:
        from models.captioners import CAPTIONERS

        return CAPTIONERS.get(self.options.captioner)

    @cached_property
    def _prompt(self) -> Prompt | None:
        """Read on the driver; it travels to the workers, which may not see the file."""
        from models.captioners import load_prompt

        return load_prompt(self.options.prompt) if self._kind.follows_prompt else None

    @cached_property
    def _slots(self) -> Slots:
        options = self.options
        instructions = 0 if self._prompt is None else len(self._prompt.instructions)
        return Slots(
            per=options.per,
            every_s=options.every_s,
            offset_s=options.offset_s,
            clip_len_s=self.context.clip_len_s,
            part_size=options.part_size,
            seed=options.seed,
            instructions=instructions,
        )

    @property
    def resources(self) -> Resources:
        """As configured; `gpus: auto` is what the captioner asks for, not what is measured: it
        takes as many captions at once as fit into the memory of its GPUs.
        """
        options = self.options
        if options.gpus != "auto":
            return super().resources
        on_gpu = self.context.device.startswith("cuda")
        gpus = self._kind.gpus(options.options) if on_gpu else 0.0
        return Resources(options.cpus, gpus, options.memory_mb)

    def check_machine(self) -> None:
        """A GPU for a captioner with weights, and what the captioner itself needs."""
        if self._kind.has_weights:
            check_gpu(self.context.device)
        self._kind.check(self.options.checkpoint, self.options.options)

    @property
    def batch_size(self) -> int:
        """Captions per call of `encode_shared`."""
        return self.options.batch_size

    def parts(self, facts: VideoFacts | None) -> int:
        """As many as the captions of the video need."""
        if facts is None or self._kind.own_times:
            return 1
        return self._slots.parts(facts)

    @property
    def counts(self) -> bool:
        """Nobody knows how many there are where the captioner has times of its own."""
        return not self._kind.own_times

    @property
    def can_be_tried(self) -> bool:
        """A server would be asked for captions that nobody keeps."""
        return self._kind.works_here

    def amount(self, facts: VideoFacts, part: int) -> int:
        """Captions of one part; told as none where the captioner has times of its own."""
        return 0 if self._kind.own_times else self._slots.size(facts, part)

    @property
    def told(self) -> str:
        """What will be asked, for a person."""
        per = "clip" if self.options.per == "clip" else f"{self.options.every_s:g} s"
        when = "times of its own" if self._kind.own_times else f"a caption per {per}"
        if self._prompt is None:
            return f"{when}, no prompt"
        return f"{when}, prompt {self._prompt.id} ({len(self._prompt.instructions)} instructions)"

    @property
    def notice(self) -> str:
        """What a user should know before it begins; "" if there is nothing."""
        untrained = ""
        if self._kind.has_weights and self.options.checkpoint is None:
            untrained = f"captions: {self.options.captioner} has no checkpoint and writes noise"
        told = (self._kind.notice(self.options.options), untrained, self._gaps)
        return "; ".join(filter(None, told))

    @property
    def _gaps(self) -> str:
        """Whether the grid has more clips than there will be captions."""
        every_s, clip_len_s = self.options.every_s, self.context.clip_len_s
        if self.options.per == "clip" or self._kind.own_times or every_s <= clip_len_s:
            return ""
        return (
            f"a caption every {every_s:g} s leaves about {1 - clip_len_s / every_s:.0%} of the "
            f"clips of {clip_len_s:.3g} s without one of their own; stages.narratives.fill says "
            "what these get (docs/narratives.md)"
        )

    @property
    def by_content(self) -> bool:
        """What was captioned elsewhere is known by its id."""
        return not self._kind.own_times

    def work(self) -> Work | None:
        """Of one caption, as its captioner says."""
        return self._kind.work(self.options.checkpoint, self.options.options)

    # --- at work

    def setup(self) -> None:
        """Build the captioner."""
        from models.captioners import create

        self._captioner = create(
            self.options.captioner,
            self.options.checkpoint,
            seed=self.options.seed,
            device=self.context.device,
            **self.options.options,
        )
        self._reuser = Reuser(self.options.reuse)

    def close(self) -> None:
        """Release engines, connections and memory of the GPU."""
        if self._captioner is not None:
            self._captioner.close()
        self._captioner = None

    def request(self, item: Item) -> FrameRequest:
        """The frames on the screen at each timestamp, or spread over each clip; of a part that is
        not finished, those of its missing captions.
        """
        captioner = built(self._captioner, self.name)
        built(self._reuser, self.name).forget(item.key)
        view = _view(captioner.sight, self.context.decode_mode)
        if captioner.own_times:
            return FrameRequest(self.name, np.zeros((0, 1)), view)
        part = self._part(item)
        starts = np.array([part.slots[unit].start_s for unit in part.wanted])
        times = starts[:, None] + self._offsets_s(item)
        return FrameRequest(self.name, times, view, inclusive=True)

    def encode(self, item: Item, windows: Sequence[Window]) -> Sequence[Made]:
        """One caption per window."""
        return self.encode_shared([(item, window) for window in windows])

    def encode_shared(self, windows: Sequence[tuple[Item, Window]]) -> Sequence[Made]:
        """One caption per window; those of pictures like earlier ones are left to `finish`."""
        part_of = cache(self._part)
        made = [self._seen(item, window, part_of(item)) for item, window in windows]
        requests = [
            self._request_of(item, part_of(item).slot_of(window.unit), window.frames)
            for (item, window), each in zip(windows, made, strict=True)
            if each.source is None
        ]
        results = built(self._captioner, self.name).caption(requests)
        own = (index for index, each in enumerate(made) if each.source is None)
        for index, result in zip(own, results, strict=True):
            made[index] = replace(made[index], result=result)
        return made

    def finish(self, item: Item, results: Sequence[Made]) -> Row:
        """Texts and records of one part.

        Raises:
            UnfinishedError: `captions-failed`, with the captions that there are.
            InputError: `no-captions`, a captioner with times of its own knows none of the video.
        """
        captioner = built(self._captioner, self.name)
        built(self._reuser, self.name).forget(item.key)
        slots: Sequence[Slot]
        if captioner.own_times:
            slots = self._slots.at(item.key.content, captioner.times_s(item.key.id).tolist())
            made = self._read(item, slots, captioner)
        else:
            part = self._part(item)
            slots, made = part.slots, part.with_fresh(results)
        whole = joined(made)
        if self.options.failed == "quarantine" and any(each.lost for each in whole):
            raise UnfinishedError(
                "captions-failed", told_lost(item.key.id, whole, slots), kept_text(made)
            )
        return self._row(item, slots, whole, captioner.params())

    def _row(
        self, item: Item, slots: Sequence[Slot], whole: Sequence[Made], params: Mapping[str, Any]
    ) -> Row:
        asked = {"seed": self.options.seed}
        prompt = {} if self._prompt is None else {"prompt": self._prompt.id}
        pairs = zip(whole, slots, strict=True)
        texts = {
            "caption": ["" if each.result is None else each.result.text for each in whole],
            "record": [record_of(*pair, {**asked, **prompt}, slots[0].index) for pair in pairs],
        }
        times = np.array([slot.start_s for slot in slots], dtype=np.float64)
        facts = {**counts_of(whole), "captioner": dict(params)}
        return Row(item.key, grid_of(item, self.context), {"time_s": times}, texts, facts)

    # --- one caption

    def _part(self, item: Item) -> Part:
        key = item.key
        return Part.of(self._slots.of_part(key.content, facts_of(item), key.part), item.kept)

    def _seen(self, item: Item, window: Window, part: Part) -> Made:
        """The pictures of a window, and whose caption serves."""
        made = Made(input_hash(window.frames), tuple(window.times_s.tolist()))
        if not part.is_new:
            return made  # what is alike was decided when the part was first worked on
        unit = part.wanted[window.unit]
        reused = built(self._reuser, self.name).source_of(
            item.key, unit, part.slots[unit].start_s, window.frames, made.input
        )
        return made if reused is None else replace(made, source=reused.unit, bits=reused.bits)

    def _request_of(self, item: Item, slot: Slot, frames: NDArray[np.uint8]) -> CaptionRequest:
        from models.captioners import CaptionRequest

        words = "" if self._prompt is None else self._prompt.instructions[slot.instruction or 0]
        key = f"{item.key.content}:{slot.index}"
        times_s = tuple(self._offsets_s(item).tolist()) if len(frames) else ()
        return CaptionRequest(frames, words, slot.start_s, key, item.key.id, times_s)

    def _read(self, item: Item, slots: Sequence[Slot], captioner: Captioner) -> list[Made]:
        """All captions of a captioner that knows itself when there are some."""
        if not slots:
            raise InputError(
                "no-captions", f"captioner {captioner.name} has no captions of '{item.key.id}'"
            )
        blind = np.zeros((0, 0, 0, 3), dtype=np.uint8)
        results = captioner.caption([self._request_of(item, slot, blind) for slot in slots])
        return [Made(result=result) for result in results]

    def _offsets_s(self, item: Item) -> NDArray[np.float64]:
        return built(self._captioner, self.name).offsets_s(
            clip_len_s=self.context.clip_len_s if self.options.per == "clip" else None,
            gap_s=self.options.frame_gap_s,
            fps=facts_of(item).fps,
        )


def _view(sight: Sight, mode: Mode) -> View:
    if sight.fit == "scaled" or sight.fit == "square":
        return View(sight.side, sight.fit == "square", mode)
    return View(sight.side, False, mode, sight.fit, sight.background)
