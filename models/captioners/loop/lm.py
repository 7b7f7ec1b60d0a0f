"""What the loop has to know of a language model, and how one is brought to a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Shape", "place", "shape_of"]


@dataclass(frozen=True)
class Shape:
    """Sizes of what a language model remembers.

    Args:
        layers: with keys and values of their own.
        heads: of keys and values.
        head_dim: width of a head.
        positions: most tokens of prompt and answer together; None: no limit is known.
    """

    layers: int
    heads: int
    head_dim: int
    positions: int | None

    @property
    def numbers(self) -> int:
        """Keys and values of one token of one row."""
        return 2 * self.layers * self.heads * self.head_dim


def shape_of(lm: nn.Module) -> Shape:
    """Of a causal language model of transformers, from its `config`.

    Raises:
        ValueError: a layer does not look at all that was before; the loop has one mask for all.
    """
    whole: Any = lm.config
    config = whole.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if kinds != {"full_attention"} or (
        window is not None and getattr(config, "use_sliding_window", True)
    ):
        raise ValueError(
            f"the generation loop needs a language model in which every layer attends to all "
            f"tokens before, got {config.model_type} with {sorted(kinds)}, sliding_window {window}"
        )
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        positions=getattr(config, "max_position_embeddings", None),
    )


def place(module: nn.Module, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """Bring parameters to a device and a type, and buffers to the device in their own type.

    `module.to(dtype)` would also round the frequencies of rotary positions, which transformers
    keeps in float32: in bfloat16 they turn position 600 into one that is several tokens off.

    Raises:
        ValueError: they were rounded already; what is lost cannot be brought back here.
    """
    for name, buffer in module.named_buffers():
        if name.endswith("inv_freq") and buffer.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {buffer.dtype}: the model was cast with `.to(dtype)`, which rounds its "
                "rotary positions; cast with models.captioners.loop.place instead"
            )
    for parameter in module.parameters():
        floats = parameter.is_floating_point()
        parameter.data = parameter.data.to(device=device, dtype=dtype if floats else None)
    return module.to(device)
