"""How concepts go through layers of an LLM, and the controls that must fail if the LLM matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.llama_files import LlamaLayers
from models.retrieval.parts.llama_layers import FrozenLlama, random_layers

__all__ = ["CONTROLS", "Context", "Control", "Refiner", "refined", "refiner_of"]

Context = Literal["triplet", "all", "single"]
Control = Literal["none", "identity", "random-weights", "mean-shift", "permuted"]

CONTROLS: tuple[Control, ...] = ("identity", "random-weights", "mean-shift", "permuted")

_TOGETHER = 256  # sequences that go through the layers at once


class Refiner(Protocol):
    """(B, N, W) tokens and (B, N) bool as (B, N, W)."""

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        """One pass."""
        ...


@dataclass(frozen=True)
class MeanShift:
    """Every token plus the mean token: all similarities rise, and nothing was understood."""

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        """See `Refiner`."""
        return x + (x * mask.unsqueeze(-1)).sum(1, keepdim=True) / mask.sum(1)[:, None, None]


@dataclass(frozen=True)
class Identity:
    """Nothing happens."""

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        """See `Refiner`."""
        return x


def refiner_of(
    control: Control,
    held: LlamaLayers,
    layers: Sequence[int],
    *,
    final_norm: Literal["loaded", "ones", "none"],
    rope: bool,
    causal: bool,
    seed: int,
    device: str = "cpu",
) -> Refiner:
    """The layers, or what takes their place.

    Args:
        control: `none` and `permuted` are the layers themselves; `random-weights` layers of the
            same shapes.
        held: layers of an LLM.
        layers: which of them.
        final_norm: of the network's own gain, of ones, or none.
        rope: whether tokens have rotary positions.
        causal: whether a token reads only those before it.
        seed: of the random weights.
        device: where the layers run; these alone are copied there.
    """
    if control == "identity":
        return Identity()
    if control == "mean-shift":
        return MeanShift()
    tensors: Sequence[Mapping[str, Tensor]] = [held.layers[i] for i in layers]
    if control == "random-weights":
        kind = tensors[0]["q"].dtype
        tensors = random_layers(held.spec, layers, seed=seed, dtype=kind)
    network = FrozenLlama(
        held.spec,
        tensors,
        held.norm if final_norm == "loaded" else None,
        final_norm=final_norm != "none",
        rope=rope,
        causal=causal,
    )
    return network.to(device)


@torch.inference_mode()
def refined(
    refiner: Refiner,
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    context: Context,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """The three vectors of every triplet after refinement.

    Args:
        refiner: takes sequences of tokens.
        vectors: (C, W) one per concept.
        rows: (N, 3) concepts of each triplet.
        context: what a concept is refined together with: the two others of its triplet, all
            concepts of the file, or nothing.
        device: where the refiner is.

    Returns:
        (N, 3, W).
    """
    tokens = torch.from_numpy(np.ascontiguousarray(vectors))
    if context == "all":
        return _through(refiner, tokens[None], device)[0].numpy()[rows]
    if context == "single":
        return _through(refiner, tokens[:, None], device)[:, 0].numpy()[rows]
    places = torch.from_numpy(rows)
    parts = [_through(refiner, tokens[part], device) for part in torch.split(places, _TOGETHER)]
    found: NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def _through(refiner: Refiner, sequences: Tensor, device: str) -> Tensor:
    """(S, N, W) refined and back on the CPU; so many at a time are on the device."""
    parts = []
    for part in torch.split(sequences, _TOGETHER):
        mask = torch.ones(part.shape[:2], dtype=torch.bool, device=device)
        parts.append(refiner(part.to(device), mask).float().cpu())
    return torch.cat(parts)
