"""What a worker does: items to rows, rows to shards. Plain Python, whoever runs it.

An error of one stage of the set fails that stage for that item and nothing else; an error of the
decoder fails the item for all stages; an error of the store, or of what the user asked for (a
decoder that cannot be imported), is nobody's input and is raised.
"""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from data.errors import DamageError, InputError, StoreError, UsageError
from data.store import ItemKey, Row, ShardRef, ShardWriter, StageReader, Store
from data.video.types import SoundRequest, SoundWindow, Window
from pipeline.engine.content import Watch, read_content, stamp_of
from pipeline.engine.spent import Stopwatch
from pipeline.engine.types import (
    UNKNOWN_CONTENT,
    FileHash,
    Job,
    Outcome,
    Report,
    StageSetupError,
    Task,
    UpstreamError,
)
from pipeline.stage import FrameStage, Item, RowStage, SoundStage

if TYPE_CHECKING:
    from data.video import IsolatedDecoder

__all__ = ["Worker"]

_LOG_CHARACTERS = 4000

_WRITE_AGAIN_S = 1.0

# InputErrors that another attempt may cure: the decoder's child process died or hung.
_WORTH_ANOTHER_TRY = frozenset({"decoder-crashed", "decoder-timeout"})


class Worker:
    """Runs the stages of one set on the tasks it is given and writes their shards.

    Args:
        job: what to run and where to write.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stages = {stage.name: stage for stage in job.stages.stages}
        self._writers: dict[str, ShardWriter] = {}
        self._oldest: dict[str, float] = {}
        self._present: dict[str, frozenset[ItemKey]] = {}
        self._decoder: IsolatedDecoder | None = None
        self._clock = Stopwatch()

    def setup(self) -> None:
        """Open the store and build the networks.

        Raises:
            StageSetupError: a stage cannot be set up.
        """
        self._store = Store.open(self.job.store)
        self._inputs = StoreInputs(self._store, self.job.upstream)
        if any(isinstance(each, FrameStage | SoundStage) for each in self._stages.values()):
            self._open_decoder().warm()  # it starts while the networks are built
        for name, stage in self._stages.items():
            try:
                stage.setup()
            except Exception as error:
                raise StageSetupError(name, _setup_sentence(name, error)) from error
            # Shards are cut by `_write_due`: a full disk must not look like a bad row.
            self._writers[name] = self._store.writer(self.job.recipes[name], target_bytes=1 << 62)

    def run(self, task: Task, upcoming: Task | None = None) -> Report:
        """Work on one task; decode the upcoming one meanwhile.

        Raises:
            StageSetupError: what the user asked of a stage cannot be had.
            OSError, StoreError: the store cannot be written.
        """
        self._clock.begin()
        outcomes: list[Outcome] = []
        hashes: list[FileHash] = []
        for item in task.items:
            watch = Watch(item)
            try:
                with self._clock.on("files"):
                    known, read = _with_content(item)
            except InputError as error:
                outcomes += [_outcome(stage, item.key, error) for stage in task.stages]
                continue
            if watch.changed:
                outcomes += [_changed(stage, item) for stage in task.stages]
                continue
            hashes += read
            there = [name for name in task.stages if read and known.key in self._stored(name)]
            outcomes += [Outcome(name, known.key, "present") for name in there]
            rest = [name for name in task.stages if name not in there]
            outcomes += self._run_item(known, rest, upcoming, watch)
        shards = tuple(self._write_due())
        return Report(tuple(outcomes), shards, tuple(hashes), self._clock.take())

    def flush(self) -> Report:
        """Write everything that is held.

        Raises:
            OSError, StoreError: the store cannot be written.
        """
        self._clock.begin()
        shards = tuple(self._write(list(self._writers)))
        return Report(shards=shards, spent=self._clock.take())

    def close(self) -> None:
        """Release the decoder and what the stages hold."""
        if self._decoder is not None:
            self._decoder.close()
        for stage in self._stages.values():
            stage.close()

    def _stored(self, stage: str) -> frozenset[ItemKey]:
        """What was stored of a stage when its first file of unknown content came."""
        if stage not in self._present:
            with self._clock.on("store"):
                reader = self._store.reader(stage, self.job.recipes[stage].id, strict=False)
                self._present[stage] = reader.keys()
        return self._present[stage]

    # --- one item

    def _run_item(
        self, item: Item, stages: Sequence[str], upcoming: Task | None, watch: Watch
    ) -> list[Outcome]:
        framed = [s for s in map(self._stages.__getitem__, stages) if isinstance(s, FrameStage)]
        results = self._frame_rows(item, framed, upcoming) if framed else {}
        self._inputs.turn_to(item.key)
        for name in stages:
            stage = self._stages[name]
            if isinstance(stage, SoundStage):
                results[name] = self._sound_row(item, stage, upcoming)
            if isinstance(stage, RowStage):
                with self._clock.on("stage"):
                    results[name] = _attempt(stage.process, item, self._inputs)
        if watch.changed:
            return [_changed(name, item) for name in stages]
        return [self._keep(name, item.key, results[name]) for name in stages]

    def _keep(self, stage: str, key: ItemKey, result: Row | Exception) -> Outcome:
        if isinstance(result, Row):
            result = _attempt(self._add, stage, key, result)
        if isinstance(result, UsageError):
            raise StageSetupError(stage, _setup_sentence(stage, result))
        if isinstance(result, Exception):
            return _outcome(stage, key, result)
        return Outcome(stage, key, "done")

    def _add(self, stage: str, key: ItemKey, row: Row) -> None:
        if row.key != key:
            raise ValueError(f"stage '{stage}' was asked for {key} and gave a row for {row.key}")
        self._writers[stage].add(row)
        self._oldest.setdefault(stage, time.monotonic())

    # --- frames

    def _frame_rows(
        self, item: Item, stages: Sequence[FrameStage], upcoming: Task | None
    ) -> dict[str, Row | Exception]:
        """One decode of the item's video for all `stages`."""
        if item.video is None:
            raise ValueError(f"item {item.key.id} goes to stages over frames and has no video")
        passes = [_Pass(stage, item, self._clock) for stage in stages]
        requests = [each.request for each in passes if each.request is not None]
        by_name = {each.stage.name: each for each in passes}
        if requests:
            try:
                decoder = self._open_decoder()
                decoding = self._clock.over("decoder", decoder.windows(item.video, requests))
                with closing(decoding) as windows:
                    for count, window in enumerate(windows):
                        if count == 0:
                            # Not before the first window: it would take the place of an own one.
                            self._prefetch(decoder, upcoming)
                        by_name[window.request].take(window)
                        if all(each.error for each in passes):
                            break
            except Exception as error:
                for each in passes:
                    each.error = each.error or error
        return {each.stage.name: each.result() for each in passes}

    def _sound_row(self, item: Item, stage: SoundStage, upcoming: Task | None) -> Row | Exception:
        """The sound of the item's video for one stage."""
        if item.video is None:
            raise ValueError(f"item {item.key.id} goes to a stage over sound and has no video")
        share = _Pass(stage, item, self._clock)
        if share.request is not None:
            try:
                decoder = self._open_decoder()
                sounds = decoder.sounds(item.video, share.request)
                with closing(self._clock.over("decoder", sounds)) as windows:
                    for count, window in enumerate(windows):
                        if count == 0:
                            self._prefetch(decoder, upcoming)
                        share.take(window)
                        if share.error:
                            break
            except Exception as error:
                share.error = share.error or error
        return share.result()

    def _open_decoder(self) -> IsolatedDecoder:
        if self._decoder is None:
            from data.video import IsolatedDecoder

            context = self.job.stages.stages[0].context
            self._decoder = IsolatedDecoder(
                context.decoder,
                fallbacks=context.fallbacks,
                damaged=context.damaged,
                timeout_s=context.decode_timeout_s,
                limits=context.limits,
            )
        return self._decoder

    def _prefetch(self, decoder: IsolatedDecoder, upcoming: Task | None) -> None:
        if upcoming is None:
            return
        item = upcoming.items[0]
        if item.video is None:
            return
        stages = [each for each in self._stages.values() if each.name in upcoming.stages]
        passes = [_Pass(each, item, self._clock) for each in stages]
        requests = [each.request for each in passes if each.request is not None]
        sounds = [each for each in requests if isinstance(each, SoundRequest)]
        if sounds:
            decoder.prefetch_sound(item.video, sounds[0])  # no decode is shared with it
        elif requests:
            decoder.prefetch(item.video, requests)

    # --- shards

    def _write_due(self) -> list[ShardRef]:
        now = time.monotonic()
        return self._write(
            [
                name
                for name, writer in self._writers.items()
                if writer.pending_bytes >= self.job.shard_bytes
                or now - self._oldest.get(name, now) >= self.job.commit_every_s
            ]
        )

    def _write(self, names: Sequence[str]) -> list[ShardRef]:
        with self._clock.on("store"):
            written = [self._flush(self._writers[name]) for name in names]
        for name in names:
            self._oldest.pop(name, None)
        return [shard for shard in written if shard is not None]

    def _flush(self, writer: ShardWriter) -> ShardRef | None:
        """Once more after a short wait: a server that fails over is back, a full disk is not."""
        try:
            return writer.flush()
        except (StoreError, OSError):
            time.sleep(_WRITE_AGAIN_S)
        return writer.flush()


@dataclass
class _Pass:
    """One stage's share of one decode: windows come in, batches go to the stage."""

    stage: Any
    item: Item
    clock: Stopwatch
    request: Any = None
    error: Exception | None = None
    waiting: list[Window | SoundWindow] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self._guarded():
            self.request = replace(self.stage.request(self.item), name=self.stage.name)

    def take(self, window: Window | SoundWindow) -> None:
        if self.error is None:
            self.waiting.append(window)
            if len(self.waiting) >= self.stage.batch_size:
                self._encode()

    def result(self) -> Row | Exception:
        if self.waiting and self.error is None:
            self._encode()
        row: Row | Exception | None = None
        with self._guarded():
            if self.error is None:
                with self.clock.on("network"):
                    row = self.stage.finish(self.item, self.results)
        return self.error or row or ValueError(f"stage '{self.stage.name}' gave no row")

    def _encode(self) -> None:
        batch, self.waiting = self.waiting, []
        with self._guarded():
            with self.clock.on("network"):
                results = self.stage.encode(self.item, batch)
            if len(results) != len(batch):
                raise ValueError(
                    f"stage '{self.stage.name}' gave {len(results)} results "
                    f"for {len(batch)} windows"
                )
            self.results.extend(results)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error


class StoreInputs:
    """Rows of other stages for the item at hand (`pipeline.stage.Inputs`)."""

    def __init__(self, store: Store, upstream: Mapping[str, str]) -> None:
        self._store = store
        self._recipes = dict(upstream)
        self._readers: dict[str, StageReader] = {}
        self._key: ItemKey | None = None

    def turn_to(self, key: ItemKey) -> None:
        """From now on rows are those of `key`'s id and content."""
        self._key = key

    def row(self, stage: str) -> Row:
        """The row of `stage` for the item at hand, all parts joined.

        Raises:
            UpstreamError: it cannot be read now.
        """
        if self._key is None:
            raise ValueError("rows are asked for before any item")
        if stage not in self._recipes:
            raise ValueError(f"rows of stage '{stage}' are read but it is not in `upstream`")
        try:
            if stage not in self._readers:
                self._readers[stage] = self._store.reader(stage, self._recipes[stage], strict=False)
            return self._readers[stage].row(self._key.id, self._key.content)
        except DamageError as error:
            raise UpstreamError(str(error), error.shard) from error
        except (StoreError, OSError) as error:
            # The next reader looks at the folder anew.
            self._readers.pop(stage, None)
            raise UpstreamError(str(error)) from error


def _with_content(item: Item) -> tuple[Item, list[FileHash]]:
    """The item with its content known; reads the file if nobody has before."""
    if item.key.content != UNKNOWN_CONTENT or item.video is None:
        return item, []
    content, read = read_content(item.video)
    key = replace(item.key, content=content)
    return replace(item, key=key, stamp=stamp_of(read.stat)), [read]


def _attempt(work: Any, *args: Any) -> Any:
    """The result of `work`, or the exception that it raised."""
    try:
        return work(*args)
    except Exception as error:
        return error


def _changed(stage: str, item: Item) -> Outcome:
    path = item.video.path if item.video is not None else item.key.id
    message = f"{path} was replaced while it was worked on; nothing was stored of it"
    return Outcome(stage, item.key, "changed", message=message)


def _outcome(stage: str, key: ItemKey, error: Exception) -> Outcome:
    if isinstance(error, UpstreamError):
        return Outcome(stage, key, "unread", message=str(error), shard=error.shard)
    if isinstance(error, InputError):
        status: Literal["error", "refused"]
        status = "error" if error.reason in _WORTH_ANOTHER_TRY else "refused"
        where = f" (on {socket.gethostname()})" if error.reason == "missing" else ""
        return Outcome(stage, key, status, error.reason, str(error)[:_LOG_CHARACTERS] + where)
    # Cut here: a text of megabytes must not travel.
    log = "".join(traceback.format_exception(error))[-_LOG_CHARACTERS:]
    message = f"{type(error).__name__}: {error}"[:_LOG_CHARACTERS]
    return Outcome(stage, key, "error", "exception", message, log)


def _setup_sentence(stage: str, error: Exception) -> str:
    name = "" if str(error) and type(error).__module__ == "data.errors" else type(error).__name__
    return f"stage '{stage}' cannot run: {name}{': ' if name else ''}{error}"
