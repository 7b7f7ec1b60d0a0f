"""From decoded windows to results: each stage's share of a decode, and the batches in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from data.errors import EngineDiedError, UsageError
from data.store import Row
from data.video.types import FrameRequest, SoundRequest, SoundWindow, Window
from pipeline.engine.outcomes import raise_if_nobodys
from pipeline.engine.spent import Stopwatch
from pipeline.engine.types import StageSetupError
from pipeline.stage import FrameStage, Item, SoundStage

__all__ = ["AnyWindow", "Batches", "Share"]

AnyWindow: TypeAlias = Window | SoundWindow


@dataclass
class Share:
    """One stage's share of the decode of one item.

    Args:
        stage: the stage.
        item: the item.
        batches: where its windows wait; those of a stage that shares batches have one together.
        clock: of the worker.
        request: what the stage wants; None if it could not say, or wants nothing.
        error: what went wrong; nothing more is done for it then.
        decoded: whether all windows have come.
        waiting: windows that have come and not been encoded.
        results: of the others, in order.
    """

    stage: FrameStage | SoundStage
    item: Item
    batches: Batches
    clock: Stopwatch
    request: FrameRequest | SoundRequest | None = None
    error: Exception | None = None
    decoded: bool = False
    waiting: int = 0
    results: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self._guarded():
            asked = replace(self.stage.request(self.item), name=self.stage.name)
            units = asked.times_s if isinstance(asked, FrameRequest) else asked.starts_s
            self.request = asked if len(units) else None

    @property
    def ended(self) -> bool:
        """Whether there is a row or an error."""
        return self.error is not None or (self.decoded and not self.waiting)

    def take(self, window: AnyWindow) -> None:
        """The next window."""
        if self.error is None:
            self.batches.take(self, window)

    def fail(self, error: Exception) -> None:
        """Nothing will come of it; the first reason counts."""
        self.error = self.error or error

    def result(self) -> Row | Exception:
        """The row; of its last windows, too, if they still wait for a batch."""
        if self.error is None and self.waiting:
            self.batches.drain()
        row: Row | Exception | None = None
        with self._guarded():
            if self.error is None:
                with self.clock.on("network"):
                    row = self.stage.finish(self.item, self.results)
        return self.error or row or ValueError(f"stage '{self.stage.name}' gave no row")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error


class Batches:
    """Windows that wait until there are enough for one call of a stage.

    Args:
        stage: the stage.
        clock: of the worker.
    """

    def __init__(self, stage: FrameStage | SoundStage, clock: Stopwatch) -> None:
        self._stage = stage
        self._clock = clock
        self._waiting: list[tuple[Share, AnyWindow]] = []

    def take(self, share: Share, window: AnyWindow) -> None:
        """One more; encodes if that makes a batch."""
        share.waiting += 1
        self._waiting.append((share, window))
        if len(self._waiting) >= self._stage.batch_size:
            self.drain()

    def drain(self) -> None:
        """Encode what waits. An error belongs to the item whose windows alone raise it."""
        batch = [(share, window) for share, window in self._waiting if share.error is None]
        self._waiting = []
        shares = list({id(share): share for share, _ in batch}.values())
        error = self._encode(batch) if batch else None
        if error is None:
            return
        if len(shares) == 1:
            shares[0].fail(error)
            return
        while shares and not _is_nobodys(self._stage.name, error):
            one = shares.pop(0)
            alone = self._encode([(share, window) for share, window in batch if share is one])
            if alone is not None:
                one.fail(alone)
                error = alone
        for share in shares:  # with what computes gone, nothing more can be made here
            share.fail(error)

    def _encode(self, batch: Sequence[tuple[Share, AnyWindow]]) -> Exception | None:
        """Hand the results to their shares, or give what was raised."""
        try:
            with self._clock.on("network"):
                results = self._call(batch)
            if len(results) != len(batch):
                raise ValueError(
                    f"stage '{self._stage.name}' gave {len(results)} results "
                    f"for {len(batch)} windows"
                )
        except Exception as error:
            return error
        for (share, _), result in zip(batch, results, strict=True):
            share.waiting -= 1
            share.results.append(result)
        return None

    def _call(self, batch: Sequence[tuple[Share, Any]]) -> Sequence[Any]:
        stage = self._stage
        if isinstance(stage, FrameStage) and stage.shares_batches:
            return stage.encode_shared([(share.item, window) for share, window in batch])
        return stage.encode(batch[0][0].item, [window for _, window in batch])


def _is_nobodys(stage: str, error: Exception) -> bool:
    """Whether no input is at fault, so that trying each alone tells nothing."""
    try:
        raise_if_nobodys(stage, error)
    except (EngineDiedError, StageSetupError, UsageError):
        return True
    return False
