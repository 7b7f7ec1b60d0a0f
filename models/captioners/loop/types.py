"""What goes into the generation loop and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["FinishReason", "Generated", "Prompts"]

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Prompts:
    """Prompts whose embeddings are made when they are needed, a few rows at a time.

    Args:
        lengths: tokens of each prompt, those of pictures included; known before anything is made.
        embed: `embed(rows)` gives the embeddings (len(rows), T, D) of rows that are all of length
            T. The loop asks for a micro-batch at a time, and for a row again only where memory
            ran out: this is the place of the vision tower.
    """

    lengths: Sequence[int]
    embed: Callable[[Sequence[int]], Tensor]

    def __len__(self) -> int:
        return len(self.lengths)

    @staticmethod
    def of(rows: Sequence[Tensor]) -> Prompts:
        """Of embeddings (T_i, D) that exist already."""
        return Prompts(
            [len(row) for row in rows], lambda wanted: torch.stack([rows[i] for i in wanted])
        )


@dataclass(frozen=True)
class Generated:
    """The tokens of one row.

    Args:
        ids: new tokens, without the token or the sequence that ended the row.
        finish_reason: "stop" at a token of the end or a stop sequence, "length" at the limit,
            "error" where the model gave no finite number.
        prompt_tokens: tokens that went in.
        reason: of an "error".
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    reason: str = ""
