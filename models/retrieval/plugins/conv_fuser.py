"""Convolutional Fuser: residual convolutions and another encoder after the fuser (LD-DETR §3.3).

Zhao et al., 2025, https://arxiv.org/abs/2501.10787, Eq. 26–28. In LD-DETR they follow an extractor
and encoders that other bases have in another form; here they refine the memory of any of them.
Convolutions only make sense along time: of a memory that also holds words or descriptions they
change the clips alone. Padding stays out of the convolutions and of the batch norms' statistics,
which learn from the right texts alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from data.errors import UsageError
from models.retrieval.build import PLUGINS, Blueprint, Dims, Options, Plugin
from models.retrieval.flow import Memory
from models.retrieval.parts.attention import EncoderLayer, xavier
from models.retrieval.parts.conv_blocks import ConvBlock, ConvMask
from models.retrieval.stages import Refiner

__all__ = ["ConvFuserOptions", "ConvRefiner"]


class ConvFuserOptions(Options):
    """Options of the convolutions.

    Args:
        blocks: residual blocks of two convolutions; 0 leaves the model as it is without the
            plug-in.
        layers: encoder layers after them.
        heads: attention heads of those.
        feedforward: features inside their feed-forwards.
        dropout: in them.
        conv_mask: `zero` keeps padding out; `none` convolves it too, as released.
    """

    blocks: int = Field(5, ge=0)
    layers: int = Field(2, ge=0)
    heads: int = Field(8, gt=0)
    feedforward: int = Field(1024, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    conv_mask: ConvMask = "zero"


class ConvRefiner(Refiner):
    """Clips of the memory through convolutions and encoder layers.

    Where the decoder attends to more than the clips, the clips are the first of its rows, and the
    change of the clips is added to them.

    Args:
        width: features.
        o: options.
    """

    mixes_samples = True

    def __init__(self, width: int, o: ConvFuserOptions) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(width, mask=o.conv_mask) for _ in range(o.blocks))
        self.layers = nn.ModuleList(
            EncoderLayer(width, o.heads, o.feedforward, o.dropout) for _ in range(o.layers)
        )
        xavier(self.layers)

    def forward(self, memory: Memory) -> Memory:
        """The memory with other clips."""
        clips = memory.clip
        for block in self.blocks:
            clips = block(clips, memory.clip_mask)
        for layer in self.layers:
            clips = layer(clips, memory.clip_pos, memory.clip_mask)
        return replace(memory, clip=clips, kv=_with_clips(memory, clips))


def _with_clips(memory: Memory, clips: Tensor) -> Tensor:
    """(B, S, d) rows for the decoder."""
    if memory.kv is memory.clip:
        return clips
    count = clips.shape[1]
    changed = memory.kv[:, :count] + (clips - memory.clip)
    return torch.cat([changed, memory.kv[:, count:]], dim=1)


def apply(blueprint: Blueprint, dims: Dims, options: ConvFuserOptions) -> Blueprint:
    """The model with the convolutions as its last refiner; the same model without blocks.

    Raises:
        UsageError: the heads do not divide the features.
    """
    if options.blocks == 0:
        return blueprint
    width = blueprint.width
    if width % options.heads:
        raise UsageError(
            f"plug-in 'conv_fuser' cannot divide {width} features among {options.heads} heads; "
            f"set heads to a divisor of {width}"
        )
    refiners = (*blueprint.parts.refiners, ConvRefiner(width, options))
    return replace(blueprint, parts=replace(blueprint.parts, refiners=refiners))


PLUGINS.register("conv_fuser")(
    Plugin(
        stage="refiner",
        requires=frozenset({"clip", "kv"}),
        options=ConvFuserOptions,
        apply=apply,
        off={"blocks": 0},
        conflicts={
            "ld_detr": "its fuser has these convolutions; set the model's own option conv_blocks",
            "emb": "its moments come from rows of proposals, which are no time axis to convolve; "
            "choose another base, or leave the plug-in out",
        },
    )
)
