"""Loop Decoder: the decoder's output becomes its next input (LD-DETR §3.4, Eq. 29–31).

Zhao et al., 2025, https://arxiv.org/abs/2501.10787. The decoder runs several times with the same
weights; only the content of the queries is fed back, anchors and places start anew each time, and
only the last time counts in predictions and losses. What the layers make of the memory is made
once. No parameters are added. Table 10 of the paper: between 2 and 4 loops there is no difference,
and UVCOM gains nothing. The public code returns inside its loop, so that it never loops.
"""

from __future__ import annotations

from pydantic import Field

from data.errors import UsageError
from models.retrieval.build import PLUGINS, Blueprint, Dims, Options, Plugin

__all__ = ["LoopDecoderOptions"]


class LoopDecoderOptions(Options):
    """Options of the loop.

    Args:
        loops: how often the decoder runs; 1 is the model without the plug-in.
    """

    loops: int = Field(3, ge=1)


def apply(blueprint: Blueprint, dims: Dims, options: LoopDecoderOptions) -> Blueprint:
    """The model whose decoder loops.

    Raises:
        UsageError: it has no decoder.
    """
    if blueprint.parts.decoder is None:
        raise UsageError(f"plug-in 'loop_decoder' cannot be used here: {_NO_DECODER}")
    blueprint.parts.decoder.loops = options.loops
    return blueprint


_NO_DECODER = "the model has no decoder that could loop; choose a base with queries"

PLUGINS.register("loop_decoder")(
    Plugin(
        stage="decoder",
        requires=frozenset({"states"}),
        options=LoopDecoderOptions,
        apply=apply,
        off={"loops": 1},
        conflicts={
            "ld_detr": "its decoder loops already; set the model's own option loops",
            "univtg": _NO_DECODER,
            "emb": _NO_DECODER,
        },
        # The first loop starts from zeros, under which these do nothing; the next ones do not.
        wakes=(
            r"decoder\.layers\.0\.self_(query|key)(_pos)?\.weight",
            r"decoder\.layers\.0\.self_query(_pos)?\.bias",
            r"decoder\.layers\.0\.self_value\.weight",
            r"decoder\.layers\.0\.self_attention\.in_proj_weight",
        ),
    )
)
