"""What a stage is. The engine owns attempts, timeouts, progress, quarantine, shards and resuming;
a stage says what it reads, what it writes and how one item becomes one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from data.errors import InputError
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

if TYPE_CHECKING:
    from models.captioners.limits import Work

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
    "UnfinishedError",
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
        kept: what an earlier attempt left in an `UnfinishedError`; "" if there was none. It comes
            from the store: check it like any file of a stranger's.
    """

    key: ItemKey
    video: Video | None = None
    facts: VideoFacts | None = None
    text: str | None = None
    stamp: tuple[int, int] | None = None
    kept: str = ""


class UnfinishedError(InputError):
    """A part of an item was done and a part failed: the item goes to quarantine, what was done is
    kept beside the stage's rows and given back as `Item.kept` at the next attempt
    (`--retry-failed`), until the row is stored. Only for stages with `commit_each`.

    Args:
        reason: short machine-readable code.
        message: a sentence for a person.
        kept: JSON text of what was done, at most `data.store.kept.MOST_BYTES` long.
    """

    def __init__(self, reason: str, message: str, kept: str) -> None:
        super().__init__(reason, message)
        self.kept = kept

    def __reduce__(self) -> tuple[type[UnfinishedError], tuple[str, str, str]]:  # type: ignore[override]  # one argument more
        return type(self), (self.reason, str(self), self.kept)


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
    commit_each: ClassVar[bool] = False
    """Whether rows are dear: each is on disk before work on the next one begins, so that a worker
    that dies costs what it had in hand and no row before it. The engine packs the many small
    shards of such a stage into large ones on the way and at its end.
    """
    summed: ClassVar[tuple[str, ...]] = ()
    """Facts of a row, whole numbers, that are summed while the stage runs (captions, tokens)."""
    remarked: ClassVar[tuple[str, ...]] = ()
    """Facts of a row, whole numbers, that `remarks` wants the sums of."""
    Options: ClassVar[type[Any]]
    """pydantic model (`extra="forbid"`) of the stage's section in pipeline.yaml."""
    inner_paths: ClassVar[frozenset[str]] = frozenset()
    """Which of the section's `options`, the further arguments of what it runs, are paths: relative
    ones are meant from the file that names them, like those that the model declares as such."""

    def __init__(self, context: StageContext, options: Any) -> None:
        self.context = context
        self.options = options

    @property
    def upstream(self) -> tuple[str, ...]:
        """Stages that this one reads with these options (`events` reads the stream it is told)."""
        return self.reads

    @classmethod
    def remarks(cls, sums: Mapping[str, int]) -> list[str]:
        """What a person should know of the rows that are there, from the sums of the facts that
        `remarked` names: half sentences for `pipeline status`.
        """
        del sums
        return []

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
    def by_content(self) -> bool:
        """Whether rows depend on the content of a video's file and on nothing else of it, so that
        those of the same file under another id serve as well.
        """
        return False

    @property
    def counts(self) -> bool:
        """Whether `amount` says how much there is to do, so that a plan can tell what it costs."""
        return False

    def amount(self, facts: VideoFacts, part: int) -> int:
        """How many captions one part of a video has."""
        del facts, part
        return 0

    def work(self) -> Work | None:
        """What one of them costs a GPU; None if nobody knows."""
        return None

    @property
    def notice(self) -> str:
        """What a user should know before it begins; "" if there is nothing."""
        return ""

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
    shares_batches: ClassVar[bool] = False
    """Whether windows of several items may be in one batch, so that short videos do not mean small
    batches. The engine then puts items together by `amount` until they fill `batch_size`, and
    calls `encode_shared`. Such a stage has each decode for itself.
    """

    @property
    def can_be_tried(self) -> bool:
        """Whether a plan may encode seconds of some videos to see how fast it is: not where that
        costs money, sends something away, or says nothing of the speed.
        """
        return True

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Windows per call of `encode`."""

    @abstractmethod
    def request(self, item: Item) -> FrameRequest:
        """Which frames this stage wants of `item.video`; `item.facts` holds its duration.

        Nothing is decoded for a request without units.
        """

    @abstractmethod
    def encode(self, item: Item, windows: Sequence[Window]) -> Sequence[Any]:
        """At most `batch_size` windows to one result each."""

    def encode_shared(self, windows: Sequence[tuple[Item, Window]]) -> Sequence[Any]:
        """As `encode`, each window with its item. If it raises, it is called again for the windows
        of each item alone, so that only the one at fault is charged.
        """
        raise NotImplementedError(f"stage '{self.name}' shares batches and has no encode_shared")

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
    alone = type(stage).parts is not Stage.parts
    return isinstance(stage, FrameStage) and not alone and not stage.shares_batches
