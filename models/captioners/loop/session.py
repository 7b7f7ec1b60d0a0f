"""Rows through one memory: prompts are read, tokens written, rows that are over make room."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.captioners.generating import Decoding
from models.captioners.loop.cache import Memory, Writing
from models.captioners.loop.memory import Budget
from models.captioners.loop.rows import REFILL_BELOW, Ending, Row, Table
from models.captioners.loop.sampling import NOT_FINITE, choose
from models.captioners.loop.steps import Steps
from models.captioners.loop.types import Prompts

__all__ = ["Counts", "Session", "Task"]


@dataclass(frozen=True)
class Task:
    """What is generated.

    Args:
        prompts: of all rows.
        decoding: how tokens are chosen.
        ending: what ends a row.
        allowed: ids at or above it are never chosen; None: all may be.
    """

    prompts: Prompts
    decoding: Decoding
    ending: Ending
    allowed: int | None = None

    @property
    def penalised(self) -> bool:
        """Whether tokens that a row has had count less."""
        return self.decoding.repetition_penalty != 1.0

    @property
    def sampled(self) -> bool:
        """Whether chance has a part."""
        return self.decoding.temperature > 0


@dataclass
class Counts:
    """What the loop has done since it was built.

    Args:
        steps: of all rows together.
        row_steps: rows that were computed in them, those that were over included.
        tokens: chosen for rows at work, by steps and by reading prompts.
        prefills: micro-batches of prompts.
        shrinks: times that memory ran out.
    """

    steps: int = 0
    row_steps: int = 0
    tokens: int = 0
    prefills: int = 0
    shrinks: int = 0


class Session:
    """One use of a memory.

    Args:
        lm: causal language model.
        steps: how a step is computed.
        memory: for keys and values.
        budget: how many prompts are read at once.
        task: what is generated.
        counts: what was done is added here.
        pad_id: token that a row without a next one is fed.
        compact_below: share of rows still at work below which rows move together.

    Attributes:
        reading: prompts that are being read, how many and of how many tokens; None while none are.
    """

    def __init__(
        self,
        lm: nn.Module,
        steps: Steps,
        memory: Memory,
        budget: Budget,
        task: Task,
        counts: Counts,
        *,
        pad_id: int,
        compact_below: float,
    ) -> None:
        self._lm: Any = lm
        self._steps, self._memory, self._budget = steps, memory, budget
        self._task, self._counts = task, counts
        self._pad, self._compact_below = pad_id, compact_below
        self._table = Table()
        self._bucket = 0
        self._seen: Tensor | None = None
        self.reading: tuple[int, int] | None = None

    def run(self, waiting: deque[Row]) -> None:
        """Until all are over."""
        while waiting or self._table.at_work:
            if self._worth_settling(len(waiting)):
                self._settle(waiting)
            if self._table.at_work:
                self._step()

    def _worth_settling(self, waiting: int) -> bool:
        at_work = len(self._table.at_work)
        if at_work == 0:
            return True
        if waiting and self._compact_below > 0:
            return at_work <= max(self._compact_below, REFILL_BELOW) * self._bucket
        return (
            at_work < self._compact_below * self._bucket
            and self._steps.bucket(at_work) < self._bucket
        )

    def _settle(self, waiting: deque[Row]) -> None:
        sources, holes = self._table.compact()
        if sources:
            self._memory.move(sources, holes)
            if self._seen is not None:
                self._seen[holes] = self._seen[sources]
        while waiting and len(self._table) < self._memory.rows:
            self._read(self._next_prompts(waiting))
        self._bucket = self._steps.bucket(len(self._table))

    def _next_prompts(self, waiting: deque[Row]) -> list[Row]:
        tokens = waiting[0].prompt_tokens
        room = self._memory.rows - len(self._table)
        most = min(room, self._budget.prefill_rows(tokens))
        rows: list[Row] = []
        while waiting and len(rows) < most and waiting[0].prompt_tokens == tokens:
            rows.append(waiting.popleft())
        return rows

    def _read(self, rows: list[Row]) -> None:
        memory, start, tokens = self._memory, len(self._table), rows[0].prompt_tokens
        self.reading = len(rows), tokens
        if memory.spoiled:
            memory.clear(start, start + len(rows))
        embeds = self._task.prompts.embed([row.index for row in rows])
        if embeds.shape[:2] != (len(rows), tokens):
            raise ValueError(
                f"{len(rows)} prompts of {tokens} tokens have embeddings {tuple(embeds.shape)}"
            )
        logits = self._lm(
            inputs_embeds=embeds.to(memory.keys[0]),
            position_ids=torch.arange(tokens, device=memory.ids.device).unsqueeze(0),
            past_key_values=Writing(memory, start),
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        memory.positions[start : start + len(rows)] = tokens
        self._table.rows.extend(rows)
        self._counts.prefills += 1
        if self._task.penalised:
            self._seen_for(logits)[start : start + len(rows)] = False
        self._take(logits, start)
        self.reading = None

    def _seen_for(self, logits: Tensor) -> Tensor:
        if self._seen is None:
            size = (self._memory.rows, logits.shape[-1])
            self._seen = torch.zeros(size, dtype=torch.bool, device=logits.device)
        return self._seen

    def _step(self) -> None:
        table, memory, bucket = self._table, self._memory, self._bucket
        logits = self._steps(memory, bucket, table.longest, table.equal)
        self._counts.steps += 1
        self._counts.row_steps += bucket
        memory.advance(bucket)
        self._take(logits, 0)

    def _take(self, logits: Tensor, start: int) -> None:
        """Choose a token for each row from the place `start` on, and hand it over."""
        here = slice(start, start + len(logits))
        rows = self._table.rows[here]
        seen = self._seen[here] if self._seen is not None else None
        chosen = choose(
            logits,
            self._task.decoding,
            seen=seen,
            uniform=self._uniform(rows, len(logits)) if self._task.sampled else None,
            allowed=self._task.allowed,
        )
        fed = chosen.masked_fill(chosen == NOT_FINITE, self._pad)
        self._memory.ids[here] = fed
        if seen is not None:
            seen.scatter_(1, fed.unsqueeze(1), True)
        tokens = chosen.tolist()
        self._memory.spoiled |= NOT_FINITE in tokens
        for row, token in zip(rows, tokens, strict=False):  # a bucket may be larger than the rows
            if row.finish is None:
                row.add(token, self._task.ending)
                self._counts.tokens += 1

    def _uniform(self, rows: list[Row], count: int) -> Tensor:
        numbers = [row.next_uniform for row in rows] + [0.0] * (count - len(rows))
        return torch.tensor(numbers, device=self._memory.ids.device)
