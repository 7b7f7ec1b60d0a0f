"""Keys and values of all rows in memory that is taken once.

transformers' dynamic cache makes a new tensor for every layer at every step: at 128 rows of
LLaVA-13B it moves three times the bytes that the step itself reads (specs/captioners.md §3.3).
Here a step writes one token per row in place. Rows may be of different lengths: each has its own
position, so that prompts of several lengths, each read without padding, are continued together.

The models take these objects as their `past_key_values`; they ask four methods of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.captioners.loop.lm import Shape

__all__ = ["Memory", "Reading", "Writing"]


class Memory:
    """Of up to `rows` rows with up to `length` tokens each.

    Args:
        shape: of the language model.
        rows: R, most rows.
        length: S, most tokens of a row.
        device: where.
        dtype: of keys and values.

    Attributes:
        keys, values: per layer (R, S, heads, head_dim). All zero at first, never uninitialised: a
            masked number that is not finite would still spoil its row.
        ids: int64 (R,), the token that each row is fed next.
        positions: int64 (R,), where that token goes, counted from the start of its prompt.
        spoiled: whether numbers that are not finite may lie about.
    """

    def __init__(
        self, shape: Shape, rows: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.rows, self.length = rows, length
        size = (rows, length, shape.heads, shape.head_dim)
        self.keys = [torch.zeros(size, device=device, dtype=dtype) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, device=device, dtype=dtype) for _ in range(shape.layers)]
        self.ids = torch.zeros(rows, device=device, dtype=torch.int64)
        self.positions = torch.zeros(rows, device=device, dtype=torch.int64)
        self.order = torch.arange(rows, device=device)
        self.spoiled = False

    @property
    def bytes(self) -> int:
        """Of all keys and values."""
        return sum(each.nbytes for each in (*self.keys, *self.values))

    def holds(self, rows: int, length: int) -> bool:
        """Whether it is large enough for that."""
        return self.rows >= rows and self.length >= length

    def move(self, sources: Sequence[int], holes: Sequence[int]) -> None:
        """Copy rows `sources` to the places `holes`; no row is in both."""
        device = self.ids.device
        take, put = torch.tensor(sources, device=device), torch.tensor(holes, device=device)
        for each in (*self.keys, *self.values, self.ids, self.positions):
            each[put] = each[take]

    def clear(self, start: int, end: int) -> None:
        """Forget what rows left behind in these places; masked or not, the next would meet it."""
        for each in (*self.keys, *self.values):
            each[start:end].zero_()

    def advance(self, rows: int) -> None:
        """Every row goes on by one token; one that is over stays inside its memory."""
        self.positions[:rows].add_(1).clamp_(max=self.length - 1)


class Writing:
    """Prompts of one length are read into the places `start, start + 1, …`."""

    is_compileable = False

    def __init__(self, memory: Memory, start: int) -> None:
        self._memory, self._start = memory, start

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep (n, heads, T, head_dim) of a layer; attention sees just these."""
        n, _, length, _ = keys.shape
        here = slice(self._start, self._start + n)
        self._memory.keys[layer][here, :length] = keys.transpose(1, 2)
        self._memory.values[layer][here, :length] = values.transpose(1, 2)
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens before."""
        del layer
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        """Position of the first new token."""
        return self.get_seq_length(layer)

    def get_mask_sizes(self, queries: int, layer: int = 0) -> tuple[int, int]:
        """Tokens that attention sees, and where they begin."""
        return self.get_seq_length(layer) + queries, 0


class Reading(Writing):
    """One token of each of the first `rows` rows is written at the row's position.

    Args:
        memory: of all rows.
        rows: how many of them go on.
        length: tokens that attention sees, those of the longest row at least.
    """

    def __init__(self, memory: Memory, rows: int, length: int) -> None:
        super().__init__(memory, 0)
        self._rows, self._length = rows, length

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep (rows, heads, 1, head_dim) of a layer; give back all that attention sees."""
        memory, rows = self._memory, self._rows
        at = memory.order[:rows], memory.positions[:rows]
        return (
            self._put(memory.keys[layer], at, keys),
            self._put(memory.values[layer], at, values),
        )

    def _put(self, kept: Tensor, at: tuple[Tensor, Tensor], new: Tensor) -> Tensor:
        kept[at] = new[:, :, 0].to(kept.dtype)
        return kept[: self._rows, : self._length].transpose(1, 2)

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens before."""
        del layer
        return self._length - 1
