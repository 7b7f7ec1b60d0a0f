"""How many rows at once: from free memory, and fewer each time that memory runs out."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch

from models.captioners.limits import Work, most_rows

__all__ = ["Budget", "free_bytes", "ran_out"]

_MEMINFO = Path("/proc/meminfo")

_LOG = logging.getLogger(__name__)

_MOST_ROWS = {"cuda": 256, "cpu": 64}
"""More bring nothing: reading the prompts takes most of the time by then (specs §3.2)."""

_PREFILL_TOKENS = {"cuda": 8192, "cpu": 4096}
"""Of prompts that are read at once; 5,000–10,000 keep a large GPU busy (specs §3.3)."""

_RESERVE_BYTES, _RESERVE_SHARE = 6 * 2**30, 0.25
"""Kept free for activations and fragments: the smaller of the two."""

_RAN_OUT = (
    "out of memory",  # torch.AcceleratorError: what is taken past torch's allocator, as for graphs
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its own memory is taken at the first multiplication
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
)
"""How libraries say it that do not raise `torch.OutOfMemoryError`."""


def ran_out(error: BaseException | None) -> bool:
    """Whether memory did not suffice, however a library says it, and also where that error was
    followed by another one: what is being recorded when memory runs out fails to end, too.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _RAN_OUT):
            return True
        error = error.__context__
    return False


def free_bytes(device: torch.device) -> float | None:
    """Bytes that this process can still take; None where the system does not say.

    On a GPU what torch holds without using it counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(
            free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        )
    if device.type == "cpu" and _MEMINFO.is_file():
        # Not the pages that are free: files that were read lie in most of the others.
        told = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
        return float(told.group(1)) * 1024 if told else None
    return None


class Budget:
    """Rows and prompt tokens at once.

    Args:
        device: where the rows are.
        max_rows: most rows that the user allows; None: as many as are worth it.

    Attributes:
        rows: most rows at once; smaller once memory ran out.
        prefill_tokens: most tokens of prompts that are read at once; at least one prompt is.
    """

    def __init__(self, device: torch.device, max_rows: int | None = None) -> None:
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows has to be at least 1, got {max_rows}")
        self._device = device
        kind = "cuda" if device.type == "cuda" else "cpu"
        self.rows = _MOST_ROWS[kind] if max_rows is None else max_rows
        self.prefill_tokens = _PREFILL_TOKENS[kind]

    def affordable(self, token_bytes: int, tokens: int, held_bytes: int) -> int:
        """Rows of up to `tokens` tokens that fit; at least one.

        Args:
            token_bytes: keys and values of a token.
            tokens: of prompt and answer.
            held_bytes: of a memory that would be given back first.
        """
        free = free_bytes(self._device)
        if free is None:
            return self.rows
        free += held_bytes
        work = Work(0.0, 0.0, 0.0, float(token_bytes), tokens, 0.0, new_tokens=0)
        reserve = min(_RESERVE_BYTES, _RESERVE_SHARE * free)
        return min(self.rows, most_rows(work, free, reserve_bytes=reserve))

    def prefill_rows(self, tokens: int) -> int:
        """How many prompts of `tokens` tokens are read at once."""
        return max(1, self.prefill_tokens // tokens)

    def shrink(self, rows: int, reading: tuple[int, int] | None) -> bool:
        """Memory ran out: allow half of it from now on.

        Args:
            rows: that were in memory.
            reading: prompts that were being read, how many and of how many tokens; None if it
                happened otherwise.

        Returns:
            False if nothing smaller is left.
        """
        if reading is not None and reading[0] > 1:
            self.prefill_tokens = (reading[0] // 2) * reading[1]
            _LOG.warning("out of memory reading %d prompts at once; now half as many", reading[0])
            return True
        if rows > 1:
            self.rows = rows // 2
            _LOG.warning("out of memory with %d captions at once; now %d", rows, self.rows)
            return True
        return False
