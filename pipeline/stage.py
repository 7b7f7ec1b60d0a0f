"""What a stage is. The engine owns attempts, timeouts, progress, quarantine, shards and resuming;
a stage says what it reads, what it writes and how one item becomes one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from data.registry import Registry
from data.store.types import ItemKey, Recipe, Row, Schema
from data.video.limits import DEFAULT_LIMITS, VideoLimits
from data.video.types import (
    FrameRequest,
    Mode,
    SoundRequest,
    SoundWindow,
    Video,
    VideoFacts,
    Window,
)

__all__ = [
    "STAGES",
    "FrameStage",
    "Given",
    "Inputs",
    "Item",
    "Resources",
    "RowStage",
    "SoundStage",
    "Stage",
    "StageContext",
    "StageSet",
]

STAGES: Registry[type[Stage]] = Registry("stage")
"""All stages by name. A stage module adds its class with `@STAGES.register("name")`."""


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage needs. `gpus` may be a fraction: several workers share a GPU;
    `auto_gpus` leaves that fraction to the engine.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_mb: int = 0
    auto_gpus: bool = False


@dataclass(frozen=True)
class StageContext:
    """Facts of the job that every stage is constructed with.

    Args:
        clip_len_s: clip length of the grid.
        decoder: name of the video decoder; `fallbacks` are tried in order when it fails.
        damaged: "keep" makes a video with undecodable packets partial, "quarantine" refuses it.
        decode_mode: how pixels are made; "fast" ones are other features, so the recipe says it.
        device: torch device of networks, e.g. "cpu" or "cuda".
        decode_timeout_s: longest time without a decoded frame.
        limits: what a video may declare, and the memory of its decoder.
    """

    clip_len_s: float
    decoder: str = "pyav"
    fallbacks: tuple[str, ...] = ("decord",)
    damaged: Literal["keep", "quarantine"] = "keep"
    decode_mode: Mode = "exact"
    device: str = "cpu"
    decode_timeout_s: float = 300.0
    limits: VideoLimits = DEFAULT_LIMITS


@dataclass(frozen=True)
class Item:
    """One unit of work of one stage; small and picklable.

    Args:
        key: id, content hash and part: what resuming compares.
        video: the media file, for stages over videos.
        facts: what `probe` found, for stages after it.
        text: the sentence, for stages over queries.
        stamp: size in bytes and modification time in ns of the file whose content is in `key`.
    """

    key: ItemKey
    video: Video | None = None
    facts: VideoFacts | None = None
    text: str | None = None
    stamp: tuple[int, int] | None = None


class Inputs(Protocol):
    """Rows of other stages for the item at hand; the engine provides it."""

    def row(self, stage: str) -> Row:
        """The current row of `stage` for the same id and content, all parts joined."""
        ...


class Stage(ABC):
    """One step of the pipeline. Subclass `RowStage` or `FrameStage`.

    A stage may run twice and gives the same rows. The constructor takes the context and the
    stage's options (a pydantic model, class attribute `Options`) and must be cheap: networks are
    built in `setup`, once per worker. Whatever changes the rows must be in `params`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ()
    """Stages whose rows are read or that must have run before."""
    over: ClassVar[Literal["videos", "queries"]] = "videos"
    Options: ClassVar[type[Any]]
    """pydantic model (`extra="forbid"`) of the stage's section in pipeline.yaml."""

    def __init__(self, context: StageContext, options: Any) -> None:
        self.context = context
        self.options = options

    @property
    def upstream(self) -> tuple[str, ...]:
        """Stages that this one reads with these options (`events` reads the stream it is told)."""
        return self.reads

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """Names, shapes and dtypes of what is written."""

    @abstractmethod
    def params(self) -> Mapping[str, Any]:
        """Plain JSON that, with the input, determines the rows (weights hash included)."""

    @property
    def resources(self) -> Resources:
        """What one worker needs."""
        return Resources()

    def parts(self, facts: VideoFacts | None) -> int:
        """Into how many parts the work on one video is cut; parts are resumed one by one."""
        del facts
        return 1

    @property
    def group_size(self) -> int:
        """How many items travel to a worker together. A group that fails is retried one by one."""
        return 1

    def check_machine(self) -> None:  # noqa: B027 - most stages run anywhere
        """UsageError for what `setup` would miss on this machine: a GPU, a compiler, a library.

        Asked before anything is decoded, where the workers run on this machine; cheap.
        """

    def setup(self) -> None:  # noqa: B027 - a stage without networks needs none
        """Build networks, open tables: once per worker, before the first item."""

    def close(self) -> None:  # noqa: B027 - nor anything to release
        """Release what `setup` took: once per worker, after the last item, if it ends in peace."""

    def recipe(self, upstream: Mapping[str, str]) -> Recipe:
        """The recipe of this stage on top of the recipe ids of what it reads."""
        return Recipe(self.name, self.version, self.params(), upstream, self.schema)


class RowStage(Stage):
    """A stage whose input is not pictures: a file's header, other stages' rows, a sentence."""

    @abstractmethod
    def process(self, item: Item, inputs: Inputs) -> Row:
        """One item to one row. Raises InputError for an input that cannot be processed."""


class Given(Stage):
    """Rows that were imported: other stages read them, and none is made here.

    Args:
        context: facts of the job.
        recipe: that of the rows.
    """

    def __init__(self, context: StageContext, recipe: Recipe) -> None:
        super().__init__(context, None)
        self._recipe = recipe

    @property
    def name(self) -> str:  # type: ignore[override]  # other classes are one stage each
        """That of the stage whose rows these are."""
        return self._recipe.stage

    @property
    def schema(self) -> Schema:
        """As it was imported."""
        return self._recipe.schema

    def params(self) -> Mapping[str, Any]:
        """What was imported."""
        return self._recipe.params

    def recipe(self, upstream: Mapping[str, str]) -> Recipe:
        """That of the rows, whatever else there is."""
        del upstream
        return self._recipe


class FrameStage(Stage):
    """A stage over frames. Frame stages that are named together share one decode of each video.

    The engine asks every stage for its `request`, serves all of them from one pass over the
    video, calls `encode` on batches of windows as they arrive, and `finish` at the end.
    """

    reads: ClassVar[tuple[str, ...]] = ("probe",)

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Windows per call of `encode`."""

    @abstractmethod
    def request(self, item: Item) -> FrameRequest:
        """Which frames this stage wants of `item.video`; `item.facts` holds its duration."""

    @abstractmethod
    def encode(self, item: Item, windows: Sequence[Window]) -> Sequence[Any]:
        """At most `batch_size` windows to one result each."""

    @abstractmethod
    def finish(self, item: Item, results: Sequence[Any]) -> Row:
        """The results of all windows, in unit order, to the row of the item."""


class SoundStage(Stage):
    """A stage over the sound of a video.

    The engine asks for the `request`, reads the sound in the decoder's child process, calls
    `encode` on batches of windows as they arrive, and `finish` at the end. A video without sound
    is no error: `finish` gets no results then.
    """

    reads: ClassVar[tuple[str, ...]] = ("probe",)

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Windows per call of `encode`."""

    @abstractmethod
    def request(self, item: Item) -> SoundRequest:
        """Which sound this stage wants of `item.video`; `item.facts` holds its duration."""

    @abstractmethod
    def encode(self, item: Item, windows: Sequence[SoundWindow]) -> Sequence[Any]:
        """At most `batch_size` windows to one result each."""

    @abstractmethod
    def finish(self, item: Item, results: Sequence[Any]) -> Row:
        """The results of all windows, in order, to the row of the item; [] if there is no sound."""


@dataclass(frozen=True)
class StageSet:
    """Stages that run together on the same videos (one decode), in the order they were named."""

    stages: tuple[Stage, ...]
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(stage.name for stage in self.stages))

    @property
    def resources(self) -> Resources:
        """What one worker needs, those GPUs not counted that are left to the engine: the stages
        take turns, GPU and other memory add up.
        """
        each = [stage.resources for stage in self.stages]
        return Resources(
            cpus=max(one.cpus for one in each),
            gpus=sum(one.gpus for one in each),
            memory_mb=sum(one.memory_mb for one in each),
            auto_gpus=any(one.auto_gpus for one in each),
        )

    @staticmethod
    def group(stages: Iterable[Stage]) -> list[StageSet]:
        """Neighbouring frame stages that work on whole videos are put together."""
        sets: list[list[Stage]] = []
        for stage in stages:
            joins = _shares_decode(stage) and bool(sets) and _shares_decode(sets[-1][-1])
            if joins:
                sets[-1].append(stage)
            else:
                sets.append([stage])
        return [StageSet(tuple(each)) for each in sets]


def _shares_decode(stage: Stage) -> bool:
    return isinstance(stage, FrameStage) and type(stage).parts is Stage.parts
