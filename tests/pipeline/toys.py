"""Small stages with known rows and known misbehaviour, told by the id of the input.

`poison-*` ends the process without a trace, `segv-*` with one, `hang-*` sleeps, `refuse-*` is an
InputError, `raise-*` an exception.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from data.config import Group
from data.errors import EngineDiedError, InputError, UsageError
from data.registry import Registry
from data.store import ItemKey, Row, Schema, StreamSpec
from data.video.types import FrameRequest, Video, VideoFacts, View, Window
from pipeline.run import Result
from pipeline.stage import FrameStage, Inputs, Item, RowStage, Stage, UnfinishedError

# Configs may name a decoder of one's own only where this allows it; children inherit it.
os.environ.setdefault("STORYLINE_DECODERS", "toys:ToyDecoder")

DURATION_S = 8.0
CLIP_LEN_S = 2.0

RunToys = Callable[..., Result]
"""What the fixture `run_toys` gives."""


def expected(id_: str, width: int = 4, scale: float = 1.0) -> np.ndarray:
    """The vector that a toy stage writes for an input."""
    seed = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:4], "big")
    return (np.random.default_rng(seed).random((1, width)) * scale).astype(np.float32)


def misbehave(id_: str) -> None:
    """Do what the id says."""
    kind = id_.partition("-")[0]
    if kind in ("poison", "segv"):
        print(f"{id_} is about to end its process", file=sys.stderr, flush=True)
    if kind == "poison":
        os._exit(13)
    if kind == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "hang":
        time.sleep(3600)
    if kind == "refuse":
        raise InputError("toy-refused", f"{id_} is refused")
    if kind == "raise":
        raise ZeroDivisionError(f"{id_} raises")


class ToyProbe(RowStage):
    """Says that every file lasts eight seconds; an empty file is refused."""

    name: ClassVar[str] = "probe"

    class Options(Group):
        """None."""

    @property
    def schema(self) -> Schema:
        return Schema()

    def params(self) -> Mapping[str, Any]:
        return {}

    def process(self, item: Item, inputs: Inputs) -> Row:
        assert item.video is not None
        size = item.video.path.stat().st_size
        if size == 0:
            raise InputError("empty", f"{item.video.path} has 0 bytes")
        damaged = 3 if item.key.id.startswith("damaged") else 0
        facts = VideoFacts(DURATION_S, 1.0, 8, 4, 4, 0, "toy", "rgb24", size, False, damaged)
        return Row(item.key, facts.grid(CLIP_LEN_S), facts=facts.to_json())


class ToyRows(RowStage):
    """One vector per video, after the probe."""

    name: ClassVar[str] = "rows"
    reads: ClassVar[tuple[str, ...]] = ("probe",)

    class Options(Group):
        """What changes the rows, and how it is done."""

        scale: float = Field(1.0, description="Factor of the vectors.")
        sleep_s: float = Field(0.0, description="Time that one item takes.")
        group: int = Field(1, description="Items per task.")
        cpus: float = Field(0.5, description="CPUs of one worker.")
        checkpoint: Path | None = Field(None, description="A file that must exist.")
        marks: Path | None = Field(
            None, description="Folder that gets one file per processed item."
        )

    @property
    def schema(self) -> Schema:
        return Schema({"vector": StreamSpec((4,), "float32", "item")})

    def params(self) -> Mapping[str, Any]:
        return {"scale": self.options.scale}

    @property
    def resources(self) -> Any:
        from pipeline.stage import Resources

        return Resources(cpus=self.options.cpus)

    @property
    def group_size(self) -> int:
        return int(self.options.group)

    def setup(self) -> None:
        checkpoint = self.options.checkpoint
        if checkpoint is not None and not checkpoint.exists():
            raise UsageError(f"there is no checkpoint {checkpoint}")

    def process(self, item: Item, inputs: Inputs) -> Row:
        if self.options.marks:
            self.options.marks.mkdir(exist_ok=True)
            (self.options.marks / f"{item.key.id}.{os.getpid()}.{time.monotonic_ns()}").touch()
        time.sleep(self.options.sleep_s)
        misbehave(item.key.id)
        assert item.facts is None or item.facts.duration_s == DURATION_S
        vector = expected(item.key.id, scale=self.options.scale)
        return Row(item.key, arrays={"vector": vector})


class ToySum(RowStage):
    """Reads the rows of `rows`."""

    name: ClassVar[str] = "sums"
    reads: ClassVar[tuple[str, ...]] = ("rows",)

    class Options(Group):
        """None."""

    @property
    def schema(self) -> Schema:
        return Schema({"sum": StreamSpec((), "float64", "item")})

    def params(self) -> Mapping[str, Any]:
        return {}

    def process(self, item: Item, inputs: Inputs) -> Row:
        total = inputs.row("rows")["vector"].sum(dtype=np.float64)
        return Row(item.key, arrays={"sum": np.array([total])})


class ToyQueries(RowStage):
    """Length of each sentence."""

    name: ClassVar[str] = "lengths"
    over: ClassVar[Literal["videos", "queries"]] = "queries"

    class Options(Group):
        """None."""

    @property
    def schema(self) -> Schema:
        return Schema({"length": StreamSpec((), "int64", "item")}, texts=("text",))

    def params(self) -> Mapping[str, Any]:
        return {}

    def process(self, item: Item, inputs: Inputs) -> Row:
        assert item.text is not None
        length = np.array([len(item.text)], dtype=np.int64)
        return Row(item.key, arrays={"length": length}, texts={"text": [item.text]})


class _Frames(FrameStage):
    """Mean of each clip's first frame."""

    class Options(Group):
        """How it misbehaves."""

        fails: bool = Field(False, description="Raise in encode.")
        refuses_setup: bool = Field(False, description="Raise in setup.")

    @property
    def schema(self) -> Schema:
        return Schema({"mean": StreamSpec((1,), "float32", "clip")})

    def params(self) -> Mapping[str, Any]:
        return {"stage": self.name}

    @property
    def batch_size(self) -> int:
        return 3

    @property
    def resources(self) -> Any:
        from pipeline.stage import Resources

        return Resources(cpus=0.5)

    def setup(self) -> None:
        if self.options.refuses_setup:
            raise UsageError("the weights are missing")

    def request(self, item: Item) -> FrameRequest:
        assert item.facts is not None
        times = item.facts.grid(CLIP_LEN_S).centres_s[:, None]
        return FrameRequest(self.name, times, View(4))

    def encode(self, item: Item, windows: Sequence[Window]) -> Sequence[float]:
        assert len(windows) <= 3
        if self.options.fails:
            raise ZeroDivisionError("this stage always fails")
        return [float(window.frames.mean()) for window in windows]

    def finish(self, item: Item, results: Sequence[Any]) -> Row:
        assert item.facts is not None
        mean = np.array(results, dtype=np.float32)[:, None]
        return Row(item.key, item.facts.grid(CLIP_LEN_S), {"mean": mean})


class ToyBright(_Frames):
    name: ClassVar[str] = "bright"


class ToyDark(_Frames):
    name: ClassVar[str] = "dark"


class ToyHalves(_Frames):
    """The same in two parts."""

    name: ClassVar[str] = "halves"

    @property
    def schema(self) -> Schema:
        return Schema({"mean": StreamSpec((1,), "float32", "item")})

    def parts(self, facts: VideoFacts | None) -> int:
        assert facts is None or facts.duration_s == DURATION_S
        return 2

    def finish(self, item: Item, results: Sequence[Any]) -> Row:
        half = len(results) // 2
        mine = results[:half] if item.key.part == 0 else results[half:]
        return Row(item.key, None, {"mean": np.array(mine, dtype=np.float32)[:, None]})


class ToyTalks(FrameStage):
    """What a captioner is to the engine: dear rows, parts of a video, batches that are shared.

    One caption per second; parts of three; batches of four. `raise-*` raises in `encode_shared`,
    `dies-*` says there that its engine died, `halfway-*` leaves an unfinished row once.
    """

    name: ClassVar[str] = "talks"
    commit_each: ClassVar[bool] = True
    shares_batches: ClassVar[bool] = True
    summed: ClassVar[tuple[str, ...]] = ("captions", "tokens")

    class Options(Group):
        """How it is done."""

        part: int = Field(3, description="Captions of a part.")
        batch: int = Field(4, description="Captions of a batch.")
        log: Path | None = Field(None, description="File that gets one line per batch.")
        sleep_s: float = Field(0.0, description="Time that one caption takes.")
        pids: Path | None = Field(None, description="Folder that gets a file per batch.")
        cpus: float = Field(0.5, description="CPUs of one worker.")

    @property
    def schema(self) -> Schema:
        return Schema({"time_s": StreamSpec((), "float64", "item")}, texts=("caption",))

    def params(self) -> Mapping[str, Any]:
        return {"part": self.options.part}

    @property
    def resources(self) -> Any:
        from pipeline.stage import Resources

        return Resources(cpus=self.options.cpus)

    @property
    def batch_size(self) -> int:
        return int(self.options.batch)

    def parts(self, facts: VideoFacts | None) -> int:
        return 1 if facts is None else -(-int(facts.duration_s) // int(self.options.part))

    def amount(self, facts: VideoFacts, part: int) -> int:
        return min(int(self.options.part), int(facts.duration_s) - part * int(self.options.part))

    def _times(self, item: Item) -> np.ndarray:
        assert item.facts is not None
        first = item.key.part * int(self.options.part)
        return first + np.arange(self.amount(item.facts, item.key.part), dtype=np.float64)

    def request(self, item: Item) -> FrameRequest:
        times = self._times(item)[1 if item.kept else 0 :, None]
        return FrameRequest(self.name, times, View(4), inclusive=True)

    def encode(self, item: Item, windows: Sequence[Window]) -> Sequence[str]:
        raise NotImplementedError("batches are shared")

    def encode_shared(self, windows: Sequence[tuple[Item, Window]]) -> Sequence[str]:
        said = [f"{item.key.id}@{int(window.frames.max())}" for item, window in windows]
        if self.options.log is not None:
            with self.options.log.open("a") as log:
                log.write(" ".join(said) + "\n")
        if self.options.pids is not None:
            self.options.pids.mkdir(exist_ok=True)
            (self.options.pids / f"{os.getpid()}.{time.monotonic_ns()}").touch()
        for item, _ in windows:
            time.sleep(self.options.sleep_s)
            if item.key.id.startswith("dies"):
                raise EngineDiedError(f"the engine died of {item.key.id}")
            misbehave(item.key.id)
        return said

    def finish(self, item: Item, results: Sequence[str]) -> Row:
        made = [*json.loads(item.kept or "[]"), *results]
        if item.key.id.startswith("halfway") and not item.kept:
            kept = json.dumps(made[:1])
            raise UnfinishedError("captions-failed", f"all but one of {item.key.id} failed", kept)
        facts = {"captions": len(made), "tokens": sum(map(len, made))}
        return Row(item.key, None, {"time_s": self._times(item)}, {"caption": made}, facts)


class ToyDecoder:
    """Frames whose brightness is their second; one line in `decodes.log` per pass."""

    name = "toy"

    def probe(self, video: Video) -> VideoFacts:
        raise InputError("undecodable", "the toy decoder does not probe")

    def windows(self, video: Video, requests: Sequence[FrameRequest]) -> Iterator[Window]:
        names = ",".join(sorted(request.name for request in requests))
        with (video.path.parent / "decodes.log").open("a") as log:
            log.write(f"{video.id} {names}\n")
        if video.id.startswith("undecodable"):
            raise InputError("undecodable", f"{video.path} cannot be decoded")
        for request in requests:
            for unit, times in enumerate(request.times_s):
                frames = np.full((len(times), 4, 4, 3), int(times[0]), dtype=np.uint8)
                yield Window(request.name, unit, frames, times)


TOYS: tuple[type[Stage], ...] = (
    ToyProbe,
    ToyRows,
    ToySum,
    ToyQueries,
    ToyBright,
    ToyDark,
    ToyHalves,
    ToyTalks,
)


def toy_registry() -> dict[str, type[Stage]]:
    """What the registry of stages holds while toys stand in for the real ones."""
    registry: Registry[type[Stage]] = Registry("stage")
    for stage in TOYS:
        registry.register(stage.name)(stage)
    return {name: registry.get(name) for name in registry}


def write_videos(folder: Path, ids: Sequence[str]) -> list[Video]:
    """Files that the toys take for videos; contents differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for id_ in ids:
        (folder / f"{id_}.mp4").write_text(f"toy video {id_}")
    return [Video(id_, folder / f"{id_}.mp4") for id_ in ids]


def key_of(video: Video) -> ItemKey:
    """The key under which a whole file is stored."""
    return ItemKey(video.id, hashlib.sha256(video.path.read_bytes()).hexdigest())
