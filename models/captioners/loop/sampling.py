"""Which token comes next. What one row gets depends on nothing but that row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.captioners.generating import Decoding

__all__ = ["NOT_FINITE", "Chooser", "choose", "penalised", "uniforms"]

NOT_FINITE = -1
"""In place of a token where the model gave no finite number."""

_BITS = 24
"""Of a uniform number: as many as float32 holds below 1, so that none is rounded to 1."""


def uniforms(seed: int, key: str, count: int) -> NDArray[np.float32]:
    """Uniform numbers in [0, 1), (count,): number i belongs to step i of the row `key`.

    They come from a hash, not from a generator with a state: they are the same in any batch, in
    any order, after any restart, and whatever `count` is.
    """
    blocks = -(-count // 16)
    made = b"".join(
        hashlib.blake2b(f"{seed}\0{key}\0{block}".encode(), digest_size=64).digest()
        for block in range(blocks)
    )
    words = np.frombuffer(made, dtype="<u4")[:count] >> np.uint32(32 - _BITS)
    return words.astype(np.float32) / np.float32(2**_BITS)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (n, V) with those of tokens that a row has `seen` (n, V) made smaller.

    Divided if positive, multiplied if negative: transformers' `RepetitionPenaltyLogitsProcessor`,
    Eq. of §4.1 in Keskar et al., CTRL, https://arxiv.org/abs/1909.05858.
    """
    smaller = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, smaller, logits)


def choose(
    logits: Tensor,
    decoding: Decoding,
    *,
    seen: Tensor | None = None,
    uniform: Tensor | None = None,
    allowed: int | None = None,
) -> Tensor:
    """The next token of each row, int64 (n,); `NOT_FINITE` where the logits are not numbers.

    Args:
        logits: (n, V).
        decoding: settings; the penalty comes first, then temperature, `top_k`, `top_p`, as in
            transformers.
        seen: bool (n, V), tokens that a row has generated; needed with a repetition penalty.
        uniform: (n,) in [0, 1); needed with a temperature.
        allowed: ids at or above it are never chosen.
    """
    logits = logits[:, :allowed]
    bad = ~logits.amax(-1).isfinite()
    if seen is not None:
        logits = penalised(logits.float(), seen[:, :allowed], decoding.repetition_penalty)
    if uniform is None:
        ids = logits.argmax(-1)
    else:
        ids = _sampled(logits.float() / decoding.temperature, decoding, uniform)
    return ids.masked_fill(bad, NOT_FINITE)


def _sampled(logits: Tensor, decoding: Decoding, uniform: Tensor) -> Tensor:
    # Likeliest first, so that whatever is rounded at the far end is a token that may be chosen.
    sorted_, order = logits.sort(dim=-1, descending=True, stable=True)
    if decoding.top_k > 0:
        sorted_ = sorted_[:, : decoding.top_k]
    shares = sorted_.softmax(-1)
    before = shares.cumsum(-1) - shares
    # The smallest set that reaches top_p: a token is in it if those before it do not. The first
    # is always in it.
    kept = (before < decoding.top_p) | (torch.arange(shares.shape[-1], device=shares.device) == 0)
    reach = shares.masked_fill(~kept, 0.0).cumsum(-1)
    wanted = (uniform * reach[:, -1]).unsqueeze(-1)
    place = torch.searchsorted(reach, wanted, right=True)
    last = (kept & (shares > 0)).sum(-1, keepdim=True) - 1
    return order.gather(-1, place.minimum(last)).squeeze(-1)


class Chooser:
    """`choose` with its memory, for rows that all are at the same step.

    Args:
        decoding: settings.
        keys: of the rows, which seed their sampling.
        device: of the logits.
        allowed: ids at or above it are never chosen.
    """

    def __init__(
        self,
        decoding: Decoding,
        keys: Sequence[str],
        device: torch.device,
        allowed: int | None = None,
    ) -> None:
        self._decoding, self._allowed = decoding, allowed
        self._seen: Tensor | None = None
        self._uniform: Tensor | None = None
        if decoding.temperature > 0:
            numbers = [uniforms(decoding.seed, key, decoding.max_new_tokens) for key in keys]
            self._uniform = torch.from_numpy(np.stack(numbers)).to(device)

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """The token of each row at `step`, int64 (n,), from logits (n, V)."""
        if self._seen is None and self._decoding.repetition_penalty != 1.0:
            self._seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        chosen = choose(
            logits,
            self._decoding,
            seen=self._seen,
            uniform=None if self._uniform is None else self._uniform[:, step],
            allowed=self._allowed,
        )
        if self._seen is not None:
            self._seen.scatter_(1, chosen.clamp(min=0).unsqueeze(1), True)
        return chosen

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self._seen = None if self._seen is None else self._seen[rows]
        self._uniform = None if self._uniform is None else self._uniform[rows]
