"""Memory for large arrays that come and go: used again as soon as nobody looks at it."""

from __future__ import annotations

import mmap
import threading
import weakref
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["Buffers"]


class Buffers:
    """Gives arrays whose memory goes back when the array and all views and tensors on it are gone.

    A batch of 32 QVHighlights videos is 27 MB. Fresh memory of that size is filled with zeros by
    the kernel page by page, which takes as long as reading the rows from the page cache.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def array(self, *shape: int) -> NDArray[np.float32]:
        """An array of that shape, its values undefined."""
        size = max(4 * prod(shape), 1)
        memory = self._take(size)
        # Views of an array over a buffer that is no array keep that array alive, not the buffer.
        loan = np.frombuffer(memory, np.float32, prod(shape))
        weakref.finalize(loan, self._free.append, memory).atexit = False
        return loan.reshape(shape)

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            while self._free:
                memory = self._free.pop()
                if len(memory) >= size:
                    return memory
        # A little more than asked for: the next batch may hold a longer video.
        memory = mmap.mmap(-1, -(-(size + size // 8) // 4096) * 4096)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()
