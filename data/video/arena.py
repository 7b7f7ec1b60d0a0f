"""Memory that a decoding child and its parent share: pixels are written once and read in place.

The parent makes a file without a name (`memfd`; a deleted temporary file where the system has
none) and both map it. The child places windows in it and says where; the parent reads them there
and marks their place as free when the last view of one is gone. Nothing is left behind whoever
dies first, and `/dev/shm` with its limits plays no part.

    file:  | granted ticket: u64 | one byte per grain: freed by the parent | pixels ... |

A window that finds no room waits for it. The parent may *grant* it memory of its own instead, when
the consumer holds everything and asks for more; then its pixels go through the pipe, as those of a
window larger than the arena do. So a consumer that keeps its windows costs memory and never hangs.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import tempfile
import time
import weakref
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRAIN", "Arena", "ArenaWriter"]

GRAIN = 4096
"""Bytes that windows are aligned to: the place of a window is known by one byte of the file."""

_TICKET_BYTES = 8

_POLL_S = (0.001, 0.005)
"""First and longest pause between two looks for room. A pause is short beside the decoding of a
window, and what waits for room has a full buffer in front of it."""


class Arena:
    """The parent's end: views of windows, which free their place when they are gone.

    Args:
        capacity: bytes of pixels, at least a grain; rounded down to grains.

    Raises:
        OSError: there is neither shared memory nor room for temporary files.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // GRAIN * GRAIN
        control_bytes = _control_bytes(self.capacity)
        self.fd = _nameless_file(control_bytes + self.capacity)
        """For the child; `close_fd` once it has it."""
        control = np.frombuffer(mmap.mmap(self.fd, control_bytes), np.uint8)
        self._granted, self._freed = _control(control, self.capacity)
        # Read-only for this whole process, whatever is done with a view.
        self._pixels = mmap.mmap(self.fd, self.capacity, prot=mmap.PROT_READ, offset=control_bytes)
        self._held = np.zeros(self.capacity // GRAIN, dtype=bool)
        self._process = os.getpid()

    def close_fd(self) -> None:
        """Close the descriptor that was kept for the child."""
        os.close(self.fd)

    def view(self, offset: object, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Read-only pixels at a place that the child named; it is free when the last view is gone.

        Raises:
            ValueError: the place is not inside, or part of it is still held: what a child says is
                not believed.
        """
        size = math.prod(shape)
        if type(offset) is not int or offset < 0 or offset % GRAIN or size <= 0:
            raise ValueError(f"a window of {size} bytes cannot lie at {offset!r:.40}")
        if offset + size > self.capacity:
            raise ValueError(f"a window of {size} bytes at {offset} is beyond {self.capacity}")
        first, last = offset // GRAIN, (offset + size - 1) // GRAIN + 1
        if self._held[first:last].any():
            raise ValueError(f"a window of {size} bytes at {offset} lies on one that is in use")
        self._held[first:last] = True
        pixels = np.frombuffer(self._pixels, np.uint8, size, offset)
        # All views of a view refer to this array, so it goes last.
        weakref.finalize(pixels, self._release, first, last).atexit = False
        return pixels.reshape(shape)

    def grant(self, ticket: int) -> None:
        """Let the wait for room with this ticket end without any."""
        self._granted[0] = ticket

    def _release(self, first: int, last: int) -> None:
        if os.getpid() != self._process:
            return  # a fork has copies of the views, not of what they show
        self._held[first:last] = False  # before the child may use it again
        self._freed[first] = 1


@dataclass(eq=False)
class _Block:
    """A used place, in bytes from the start of the pixels."""

    start: int
    end: int
    handed_over: bool = False


class ArenaWriter:
    """The child's end: gives out memory for windows, lowest free place first.

    Args:
        fd: the arena's file; it is closed.
        capacity: that of the arena.
        full: called with a ticket when a window has to wait for room.
    """

    def __init__(self, fd: int, capacity: int, full: Callable[[int], None]) -> None:
        control_bytes = _control_bytes(capacity)
        memory = np.frombuffer(mmap.mmap(fd, control_bytes + capacity), np.uint8)
        os.close(fd)
        self._granted, self._freed = _control(memory, capacity)
        self._pixels = memory[control_bytes:]
        self._address = self._pixels.ctypes.data
        self._full = full
        self._ticket = 0
        self._taken: list[tuple[int, int]] = []
        self._blocks: dict[int, _Block] = {}
        self._dropped: deque[_Block] = deque()

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Uninitialised pixels, in the arena if they fit into it at all. It waits for room until
        there is some, or until memory of its own is granted.

        An array that is dropped without `hand_over` frees its place.
        """
        size = math.prod(shape)
        block = self._room(size) if 0 < size <= self._pixels.nbytes else None
        return np.empty(shape, np.uint8) if block is None else self._array(block, shape)

    def hand_over(self, pixels: NDArray[np.uint8]) -> int | None:
        """The place of finished pixels, which are the parent's from now on. Pixels from elsewhere
        are copied in if there is room; None if there is none.
        """
        block = self._block_of(pixels)
        if block is None:
            block = self._free_block(pixels.nbytes)
            if block is None:
                return None
            self._array(block, pixels.shape)[...] = pixels
        block.handed_over = True
        return block.start

    def _array(self, block: _Block, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        # From the memory and not from `_pixels`: an array of its own for the views to refer to.
        flat = np.frombuffer(self._pixels.data, np.uint8, math.prod(shape), block.start)
        weakref.finalize(flat, self._dropped.append, block).atexit = False
        return flat.reshape(shape)

    def _room(self, size: int) -> _Block | None:
        """A place as soon as there is one; None when the parent grants memory instead."""
        block = self._free_block(size)
        if block is not None:
            return block
        self._ticket += 1
        self._full(self._ticket)
        pause_s, longest_s = _POLL_S
        while self._granted[0] < self._ticket:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
            block = self._free_block(size)
            if block is not None:
                return block
        return None

    def _free_block(self, size: int) -> _Block | None:
        """The lowest place that is large enough, which keeps the memory in use small."""
        self._collect()
        span = -(-size // GRAIN) * GRAIN
        at = 0
        for start, end in self._taken:
            if start - at >= span:
                break
            at = end
        if size == 0 or at + span > self._pixels.nbytes:
            return None
        block = _Block(at, at + span)
        insort(self._taken, (block.start, block.end))
        self._blocks[block.start] = block
        return block

    def _collect(self) -> None:
        """Take back what the parent has read and what was never handed over."""
        # A copy: numpy refuses to look through what the parent changes meanwhile.
        for index in np.flatnonzero(self._freed.copy()).tolist():
            self._freed[index] = 0
            self._forget(self._blocks[index * GRAIN])
        while self._dropped:
            block = self._dropped.popleft()
            if not block.handed_over:
                self._forget(block)

    def _forget(self, block: _Block) -> None:
        del self._blocks[block.start]
        self._taken.remove((block.start, block.end))

    def _block_of(self, pixels: NDArray[np.uint8]) -> _Block | None:
        """The block that these very pixels fill, from its start."""
        block = self._blocks.get(pixels.ctypes.data - self._address)
        whole = pixels.flags.c_contiguous and block is not None and not block.handed_over
        return block if whole else None


def _control_bytes(capacity: int) -> int:
    """Bytes before the pixels, which begin where a mapping of their own may begin."""
    unit = mmap.ALLOCATIONGRANULARITY
    return -(-(_TICKET_BYTES + capacity // GRAIN) // unit) * unit


def _control(
    memory: NDArray[np.uint8], capacity: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """The granted ticket, shape (1,), and the freed grains, shape (grains,)."""
    freed = memory[_TICKET_BYTES : _TICKET_BYTES + capacity // GRAIN]
    return memory[:_TICKET_BYTES].view(np.uint64), freed


def _nameless_file(size: int) -> int:
    """Descriptor of a file of zeros that has no name and goes with its last user."""
    fd = _memory_file()
    if fd is None:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
        # A child that was taken over must not take the pages away while we read: a bus error.
        with contextlib.suppress(AttributeError, OSError):  # Linux, and memory files only
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd


def _memory_file() -> int | None:
    try:
        return os.memfd_create("storyline-windows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):  # not Linux, or forbidden
        return None
