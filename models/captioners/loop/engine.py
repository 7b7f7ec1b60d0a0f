"""Generation for many rows at once, of which no row notices the others.

Prompts of equal length are read together, without padding, a few at a time; all rows then go on
together, each at its own position. Rows that are over make room for those that wait, or the rest
moves into a smaller batch. Memory that runs out halves the batch and costs time, not a row.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UsageError
from models.captioners.generating import Decoding
from models.captioners.loop.cache import Memory
from models.captioners.loop.lm import place, shape_of
from models.captioners.loop.memory import Budget, ran_out
from models.captioners.loop.rows import COMPACT_BELOW, Ending, Row
from models.captioners.loop.sampling import uniforms
from models.captioners.loop.session import Counts, Session, Task
from models.captioners.loop.steps import ExactSteps, GraphSteps, Steps
from models.captioners.loop.types import Generated, Prompts

__all__ = ["Engine"]

_LENGTH = 64
"""Memory is taken for multiples of it, so that a prompt that is a word longer still fits."""


class Engine:
    """Generates tokens with a causal language model of transformers.

    Args:
        lm: takes `inputs_embeds`, `position_ids`, `attention_mask`, `past_key_values` and
            `logits_to_keep`; each layer attends to all tokens before (LLaMA, OPT, …). It is
            brought to `device` and `dtype` by `models.captioners.loop.place`.
        device: where rows are generated.
        dtype: of weights, keys and values.
        eos: tokens that end a row.
        pad_id: what rows without a next token are fed; it changes no other row.
        max_rows: most rows at once; None: as free memory allows, at most 256 (64 on a CPU).
        graphs: on a GPU, replay steps as CUDA graphs.
        steps: how steps are computed, from `lm`; None: graphs or exact shapes.
        compact_below: share of rows still at work below which rows move together; 0: never.

    Attributes:
        counts: what was done since it was built.

    Raises:
        ValueError: a language model that the loop cannot run, or no row allowed.
    """

    def __init__(
        self,
        lm: nn.Module,
        *,
        device: str | torch.device,
        dtype: torch.dtype,
        eos: Collection[int],
        pad_id: int = 0,
        max_rows: int | None = None,
        graphs: bool = True,
        steps: Callable[[nn.Module], Steps] | None = None,
        compact_below: float = COMPACT_BELOW,
    ) -> None:
        self._shape = shape_of(lm)
        self._device, self._dtype = torch.device(device), dtype
        self._lm = place(lm, self._device, dtype).eval()
        self._eos, self._pad = frozenset(eos), pad_id
        self._budget = Budget(self._device, max_rows)
        self._steps = (steps or _steps_for(self._device, graphs))(self._lm)
        self._compact_below = compact_below
        self._memory: Memory | None = None
        self.counts = Counts()

    @property
    def max_rows(self) -> int:
        """Most rows at once, as far as is known by now."""
        return self._budget.rows

    def params(self) -> dict[str, Any]:
        """Plain JSON for provenance: what the last bits of a result may depend on."""
        made: dict[str, Any] = {
            "steps": type(self._steps).__name__,
            "max_rows": self.max_rows,
            "dtype": str(self._dtype).removeprefix("torch."),
            "out_of_memory": self.counts.shrinks,
        }
        if isinstance(self._steps, GraphSteps) and self._steps.failure:
            made["no_graphs"] = self._steps.failure
        return made

    def release(self) -> None:
        """Give back the memory of keys and values; the next call takes it anew."""
        self._memory = None
        self._steps.forget()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Prompts | Sequence[Tensor],
        keys: Sequence[str],
        decoding: Decoding,
        *,
        stop: Sequence[tuple[int, ...]] = (),
        allowed: int | None = None,
    ) -> list[Generated]:
        """One generation per prompt, in order, whatever else is in the call.

        Args:
            prompts: embeddings (T_i, D), or a description of how they are made when needed.
            keys: of each row; sampling is seeded by (`decoding.seed`, key, step).
            decoding: how tokens are chosen.
            stop: sequences of new tokens that end a row and are no part of it.
            allowed: ids at or above it are never chosen.

        Raises:
            UsageError: prompt and answer are longer than the language model can count.
            torch.OutOfMemoryError: one row at a time does not fit.
        """
        given = prompts if isinstance(prompts, Prompts) else Prompts.of(prompts)
        task = Task(given, decoding, Ending.of(self._eos, stop, decoding.max_new_tokens), allowed)
        self._check(given, keys, decoding)
        rows = [
            Row(i, tokens, _uniform(decoding, key))
            for i, (tokens, key) in enumerate(zip(given.lengths, keys, strict=True))
        ]
        while open_ := [row for row in rows if row.finish is None]:
            if not self._attempt(open_, task):
                # Only here nothing holds on any more to the memory that did not suffice.
                self.release()
        return [row.result() for row in rows]

    def _check(self, prompts: Prompts, keys: Sequence[str], decoding: Decoding) -> None:
        if len(prompts) != len(keys):
            raise ValueError(f"{len(prompts)} prompts have {len(keys)} keys")
        if min(prompts.lengths, default=1) < 1:
            raise ValueError("a prompt has at least one token")
        longest = max(prompts.lengths, default=0)
        most = self._shape.positions
        if most is not None and longest + decoding.max_new_tokens > most:
            raise UsageError(
                f"a prompt of {longest} tokens and max_new_tokens {decoding.max_new_tokens} are "
                f"more than the {most} positions of the language model; ask for at most "
                f"{max(most - longest, 0)} new tokens, or give a shorter prompt or fewer frames"
            )

    def _attempt(self, rows: list[Row], task: Task) -> bool:
        """Bring rows to their end; False where memory ran out, and less of it is allowed now."""
        waiting = deque(sorted(rows, key=lambda row: row.prompt_tokens))
        session: Session | None = None
        try:
            memory = self._memory_for(
                len(rows), waiting[-1].prompt_tokens + task.decoding.max_new_tokens
            )
            session = Session(
                self._lm,
                self._steps,
                memory,
                self._budget,
                task,
                self.counts,
                pad_id=self._pad,
                compact_below=self._compact_below,
            )
            session.run(waiting)
            return True
        except RuntimeError as error:  # of which torch.OutOfMemoryError is one
            if not ran_out(error) or not self._shrink(session, len(rows)):
                raise
        for row in rows:
            if row.finish is None:
                row.restart()
        return False

    def _shrink(self, session: Session | None, wanted: int) -> bool:
        self.counts.shrinks += 1
        # A memory of more rows than are wanted was what took the room, not the few rows.
        rows = min(wanted, self._budget.rows) if self._memory is None else self._memory.rows
        return self._budget.shrink(rows, session.reading if session is not None else None)

    def _memory_for(self, wanted: int, tokens: int) -> Memory:
        if self._memory is None or not self._memory.holds(*self._size(wanted, tokens)):
            rows, length = self._size(wanted, tokens)
            self.release()  # first, or there would have to be room for both
            self._memory = Memory(self._shape, rows, length, self._device, self._dtype)
        return self._memory

    def _size(self, wanted: int, tokens: int) -> tuple[int, int]:
        """Rows and tokens of the memory for a call, as far as there is room."""
        length = -(-tokens // _LENGTH) * _LENGTH
        rows = min(self._steps.bucket(wanted), self._whole(self._budget.rows))
        held = self._memory
        if held is not None and held.holds(rows, length):
            return rows, length
        token_bytes = self._shape.numbers * self._dtype.itemsize
        # As long as before, too, so that two kinds of calls do not take turns in making it anew;
        # but not at the price of rows.
        longer, held_bytes = (length, 0) if held is None else (max(length, held.length), held.bytes)
        for each in (longer, length):
            room = self._whole(self._budget.affordable(token_bytes, each, held_bytes))
            if room >= rows:
                return rows, each
        return min(rows, room), length

    def _whole(self, rows: int) -> int:
        """The largest bucket of at most `rows`."""
        while rows > 1 and self._steps.bucket(rows) > rows:
            rows -= 1
        return rows


def _steps_for(device: torch.device, graphs: bool) -> Callable[[nn.Module], Steps]:
    return GraphSteps if graphs and device.type == "cuda" else ExactSteps


def _uniform(decoding: Decoding, key: str) -> Any:
    if decoding.temperature <= 0:
        return None
    return uniforms(decoding.seed, key, decoding.max_new_tokens)
