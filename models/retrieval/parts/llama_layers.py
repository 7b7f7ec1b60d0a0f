"""Frozen layers of a LLaMA over any sequence of features.

The block is that of LLaMA (Touvron et al., 2023): RMSNorm, attention, RMSNorm, gated feed-forward,
each with its residual. Weights are buffers: no optimiser sees them, a gradient goes through them
and none to them. Products are taken in the type of the weights; norms and the residual stream are
float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.llama_files import LlamaSpec, tensor_shapes
from models.retrieval.parts.attention import attend
from models.retrieval.stages import Constant

__all__ = ["FrozenLlama", "FrozenLlamaLayer", "random_layers", "rms_norm", "rotated"]


def rms_norm(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """`x / √(mean x² + eps)` in float32, times the gain if there is one; (…, d) as (…, d)."""
    x = x.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x if gain is None else x * gain.float()


def rotated(x: Tensor, place: Tensor, heads: int, theta: float) -> Tensor:
    """Rotary positions (Su et al., 2021) in Hugging Face's order of a head's features.

    Args:
        x: (B, N, h·a) queries or keys.
        place: (B, N) positions.
        heads: h.
        theta: base of the wavelengths.

    Returns:
        (B, N, h·a) in the type of `x`.
    """
    per_head = x.float().view(*x.shape[:-1], heads, -1)
    half = per_head.shape[-1] // 2
    index = torch.arange(half, device=x.device, dtype=torch.float32)
    angle = (place.float().unsqueeze(-1) / theta ** (index / half)).unsqueeze(2)
    first, second = per_head[..., :half], per_head[..., half:]
    cos, sin = angle.cos(), angle.sin()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class FrozenLlamaLayer(Constant):
    """One block.

    Args:
        spec: its sizes.
        tensors: its nine tensors by the names of `tensor_shapes`.
        stored: whether they are part of the state dict.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    attention_norm: Tensor
    ffn_norm: Tensor

    def __init__(self, spec: LlamaSpec, tensors: Mapping[str, Tensor], *, stored: bool) -> None:
        super().__init__()
        self.spec = spec
        for name in tensor_shapes(spec):
            self.register_buffer(name, tensors[name], persistent=stored)

    def forward(self, x: Tensor, allowed: Tensor, place: Tensor | None) -> Tensor:
        """One step of the residual stream.

        Args:
            x: (B, N, width) float32.
            allowed: bool, as `attend`.
            place: (B, N) rotary positions; None for none.

        Returns:
            (B, N, width) float32.
        """
        x = x + self._attended(x, allowed, place).float()
        y = rms_norm(x, self.ffn_norm, self.spec.eps).to(self.gate.dtype)
        gated = functional.silu(functional.linear(y, self.gate)) * functional.linear(y, self.up)
        return x + functional.linear(gated, self.down).float()

    def _attended(self, x: Tensor, allowed: Tensor, place: Tensor | None) -> Tensor:
        spec = self.spec
        y = rms_norm(x, self.attention_norm, spec.eps).to(self.q.dtype)
        q, k, v = (functional.linear(y, weight) for weight in (self.q, self.k, self.v))
        if place is not None:
            q = rotated(q, place, spec.heads, spec.rope_theta)
            k = rotated(k, place, spec.kv_heads, spec.rope_theta)
        k, v = (_shared(each, spec) for each in (k, v))
        return functional.linear(attend(q, k, v, heads=spec.heads, allowed=allowed), self.o)


def _shared(x: Tensor, spec: LlamaSpec) -> Tensor:
    """(B, N, kv·a) as (B, N, h·a): a head of keys or values serves several of queries."""
    per_head = x.view(*x.shape[:-1], spec.kv_heads, -1)
    return per_head.repeat_interleave(spec.heads // spec.kv_heads, dim=2).flatten(-2)


class FrozenLlama(Constant):
    """Some layers in a row.

    Args:
        spec: their sizes.
        layers: the tensors of each.
        norm: gain of the last norm; see `final_norm`.
        final_norm: whether an RMSNorm comes last; its gain is `norm`, or 1 if that is None.
        rope: whether queries and keys carry rotary positions.
        causal: whether a row reads only rows before it.
        checkpointing: keep only the input of each layer for the backward pass.
        stored: whether the weights are part of the state dict.
    """

    norm: Tensor | None

    def __init__(
        self,
        spec: LlamaSpec,
        layers: Sequence[Mapping[str, Tensor]],
        norm: Tensor | None = None,
        *,
        final_norm: bool = True,
        rope: bool = False,
        causal: bool = False,
        checkpointing: bool = False,
        stored: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(FrozenLlamaLayer(spec, each, stored=stored) for each in layers)
        self.final_norm, self.rope, self.causal = final_norm, rope, causal
        self.checkpointing = checkpointing
        self.register_buffer("norm", norm, persistent=stored)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, width) float32 from (B, N, width) and (B, N) bool, rows that exist.

        Rows that do not exist are read by none; they come out as some number.
        """
        allowed = mask
        if self.causal:
            before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            allowed = mask[:, None, None] & before
        # Counted over the rows that exist, so that a place does not depend on padding.
        place = (mask.cumsum(1) - 1).clamp(min=0) if self.rope else None
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            for layer in self.layers:
                if self.checkpointing and torch.is_grad_enabled() and x.requires_grad:
                    x = checkpoint(
                        layer, x, allowed, place, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    x = layer(x, allowed, place)
            return rms_norm(x, self.norm, self.spec.eps) if self.final_norm else x


def random_layers(
    spec: LlamaSpec, numbers: Sequence[int], *, seed: int, dtype: torch.dtype
) -> list[dict[str, Tensor]]:
    """Layers of random weights that keep the size of what goes through; no global random state
    is touched.

    Args:
        spec: their sizes.
        numbers: of the layers; a layer has the same weights whatever the others.
        seed: of all of them.
        dtype: of the weights.
    """
    return [
        {
            name: _random(shape, seed * 1_000_003 + number * 101 + place).to(dtype)
            for place, (name, shape) in enumerate(tensor_shapes(spec).items())
        }
        for number in numbers
    ]


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape)
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng) / math.sqrt(shape[-1])
