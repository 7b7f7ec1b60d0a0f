"""Distill Align: video and text are aligned against a queue before they meet (LD-DETR §3.2).

Zhao et al., 2025, https://arxiv.org/abs/2501.10787, Eq. 1–8 and Table 4; how it works is in
`parts.distill`. Two losses, slow copies of the encoders and a queue; predictions do not change.

It takes the place of TR-DETR's own alignment, with which it loses (Table 4: 43.6 mAP with both,
44.9 with it alone, 44.3 without it); the alignments of other bases stay, as in the paper. Samples
without moments take no part. Slow encoders and queue move with optimiser steps, so extra passes and
views of a batch do not count. Several processes share one queue (`queue_from`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from models.retrieval.build import PLUGINS, Blueprint, Dims, Options, Plugin
from models.retrieval.parts.alignment import ClipTextTerm, Pooling, VideoTextTerm
from models.retrieval.parts.distill import (
    DistillAlignTerm,
    QueueFrom,
    QueueMask,
    SimilarityTerm,
)

__all__ = ["DistillAlignOptions"]


class DistillAlignOptions(Options):
    """Options of the alignment; the published ones but for queue and masks.

    Args:
        align_weight: of the alignment loss.
        sim_weight: of the similarity loss; with both 0 the model is the one without the plug-in.
        alpha: share of the soft target.
        momentum: how much of the slow encoders stays in an update.
        momentum_dropout: whether the slow encoders drop out features in training.
        queue_length: keys of earlier batches; 0 for none. The published 65536 are more than most
            training sets.
        queue_mask: whether keys of the same sample or video are left out.
        queue_from: of several processes, whether the queue takes the keys of `all_processes`, in
            order of rank, or of the `first_process`, which `DistributedDataParallel` spreads.
        pooling: rows of the global features.
        sim_stop_grad: whether what the similarity loss compares with gets no gradient.
        own_alignment: `replace` takes TR-DETR's own alignment losses out, `keep` adds to them.
    """

    align_weight: float = Field(0.6, ge=0)
    sim_weight: float = Field(0.6, ge=0)
    alpha: float = Field(0.4, ge=0, le=1)
    momentum: float = Field(0.995, ge=0, le=1)
    momentum_dropout: bool = True
    queue_length: int = Field(8192, ge=0)
    queue_mask: QueueMask = "same_sample"
    queue_from: QueueFrom = "all_processes"
    pooling: Pooling = "real"
    sim_stop_grad: bool = False
    own_alignment: Literal["replace", "keep"] = "replace"


def apply(blueprint: Blueprint, dims: Dims, options: DistillAlignOptions) -> Blueprint:
    """The model with the two losses among its terms; the same model if both weigh 0."""
    o = options
    if o.align_weight == 0 and o.sim_weight == 0:
        return blueprint
    parts, width = blueprint.parts, blueprint.width
    align = DistillAlignTerm(
        o.align_weight,
        parts.encoders,
        width,
        queue_length=o.queue_length,
        queue_mask=o.queue_mask,
        alpha=o.alpha,
        momentum=o.momentum,
        momentum_dropout=o.momentum_dropout,
        pooling=o.pooling,
        updates="step",
        queue_from=o.queue_from,
    )
    sim = SimilarityTerm(o.sim_weight, width, pooling=o.pooling, stop_gradient=o.sim_stop_grad)
    replaced = (VideoTextTerm, ClipTextTerm) if o.own_alignment == "replace" else ()
    kept = tuple(term for term in parts.terms if not isinstance(term, replaced))
    return replace(blueprint, parts=replace(parts, terms=(*kept, align, sim)))


PLUGINS.register("distill_align")(
    Plugin(
        stage="criterion",
        requires=frozenset({"video", "text"}),
        options=DistillAlignOptions,
        apply=apply,
        off={"align_weight": 0.0, "sim_weight": 0.0},
        conflicts={"ld_detr": "it is LD-DETR's own alignment; set the model's own options"},
    )
)
