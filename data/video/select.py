"""Which frame serves which request: pure logic over timestamps, shared by all decoders."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from data.video.types import FrameRequest, View, Window

__all__ = ["TOLERANCE_S", "Allocate", "Picture", "Selection", "new_array", "serve"]

TOLERANCE_S = 1e-6
"""Timestamps closer than this are the same; time bases of media files are 11 µs and coarser."""

Picture = Callable[[View], NDArray[np.uint8]]
"""A decoded frame that becomes pixels, shape (H, W, 3), when a view of it is asked for. They are
copied to their place at once, so they may lie in the decoder's own memory, with any strides."""

Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]
"""Memory for the frames of one window, shape (k, H, W, 3); its contents do not matter. It is asked
for when the first frame of a unit is there, and becomes `Window.frames`."""


def new_array(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The `Allocate` of a caller that has no memory of its own: a new numpy array."""
    return np.empty(shape, np.uint8)


class Selection:
    """Turns requests and a stream of frames into windows.

    A slot (one time of one unit) is served by the last frame before its time, so a frame is held
    until the next timestamp shows which slots it serves. Slots before the first frame get the
    first, slots after the last get the last. A frame is converted at most once per view, and only
    if a slot wants it. Pixels are kept until their unit is delivered; units whose times increase
    (clips, timestamps) are delivered as they are passed, which bounds the memory.

    Args:
        requests: what is wanted; names must differ.
        allocate: where the frames of a window are written, once.
    """

    def __init__(self, requests: Sequence[FrameRequest], allocate: Allocate = new_array) -> None:
        names = [request.name for request in requests]
        if len(set(names)) < len(names):
            raise ValueError(f"requests of one pass must have different names, got {names}")
        self._queues = [_Queue(request, allocate) for request in requests]
        self._held: _Shown | None = None

    @property
    def done(self) -> bool:
        """Whether every slot is served; later frames change nothing."""
        return all(queue.done for queue in self._queues)

    def offer(self, time_s: float, picture: Picture) -> Iterator[Window]:
        """Take the next frame and yield the windows that the one before it completes.

        Args:
            time_s: its timestamp in seconds, not before the previous one.
            picture: the frame.
        """
        yield from self._pass_to(time_s)
        self._held = _Shown(time_s, picture)

    def finish(self) -> Iterator[Window]:
        """Yield the windows that the last frame completes; none if there was no frame."""
        yield from self._pass_to(math.inf)

    def serve(self, frames: Iterable[tuple[float, Picture]]) -> Iterator[Window]:
        """Yield the windows that remain from a pass over `frames`, which stops when all are served.

        A second pass may begin again at the first frame: what is served stays as it is.
        """
        for time_s, picture in frames:
            yield from self.offer(time_s, picture)
            if self.done:
                return
        yield from self.finish()

    def _pass_to(self, time_s: float) -> Iterator[Window]:
        if self._held is not None:
            for queue in self._queues:
                yield from queue.take(self._held, time_s)


def serve(
    frames: Iterable[tuple[float, Picture]],
    requests: Sequence[FrameRequest],
    allocate: Allocate = new_array,
) -> Iterator[Window]:
    """All windows of `requests` from one pass over `frames`, which stops when all are served."""
    yield from Selection(requests, allocate).serve(frames)


class _Shown:
    """A frame with its timestamp and the conversions that were already made of it."""

    def __init__(self, time_s: float, picture: Picture) -> None:
        self.time_s = time_s
        self._picture = picture
        self._pixels: dict[View, NDArray[np.uint8]] = {}

    def pixels(self, view: View) -> NDArray[np.uint8]:
        if view not in self._pixels:
            self._pixels[view] = self._picture(view)
        return self._pixels[view]


class _Unit:
    """The slots of one unit as they fill."""

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self.frames = frames
        self.times_s = np.empty(len(frames), dtype=np.float64)
        self.missing = len(frames)


class _Queue:
    """The open slots of one request, by time."""

    def __init__(self, request: FrameRequest, allocate: Allocate) -> None:
        times = np.asarray(request.times_s, dtype=np.float64)
        if times.ndim != 2 or times.shape[1] == 0 or not np.isfinite(times).all():
            raise ValueError(
                f"times of request '{request.name}' must be finite, shape (units, k >= 1), "
                f"got shape {times.shape}"
            )
        flat = times.ravel()
        self._request = request
        self._allocate = allocate
        self._units, self._k = times.shape
        self._slots: list[int] = np.argsort(flat, kind="stable").tolist()
        sign = 1.0 if request.inclusive else -1.0
        self._cuts: list[float] = (np.sort(flat) + sign * TOLERANCE_S).tolist()
        self._bisect = bisect_left if request.inclusive else bisect_right
        self._position = 0
        self._open: dict[int, _Unit] = {}
        self._next_unit = 0

    @property
    def done(self) -> bool:
        return self._position == len(self._slots)

    def take(self, shown: _Shown, next_time_s: float) -> Iterator[Window]:
        """Fill the slots that a frame at `next_time_s` is too late for with the frame before."""
        end = self._bisect(self._cuts, next_time_s, lo=self._position)
        for slot in self._slots[self._position : end]:
            self._fill(slot, shown)
        self._position = end
        yield from self._complete()

    def _fill(self, slot: int, shown: _Shown) -> None:
        index, place = divmod(slot, self._k)
        pixels = shown.pixels(self._request.view)
        if index not in self._open:
            self._open[index] = _Unit(self._allocate((self._k, *pixels.shape)))
        unit = self._open[index]
        unit.frames[place] = pixels
        unit.times_s[place] = shown.time_s
        unit.missing -= 1

    def _complete(self) -> Iterator[Window]:
        while self._next_unit in self._open and self._open[self._next_unit].missing == 0:
            unit = self._open.pop(self._next_unit)
            yield Window(self._request.name, self._next_unit, unit.frames, unit.times_s)
            self._next_unit += 1
