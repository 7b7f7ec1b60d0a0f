"""LLMEPET: Prior Knowledge Integration via LLM Encoding and Pseudo Event Regulation.

Jiang et al., ACM MM 2024, https://arxiv.org/abs/2407.15051; public code
https://github.com/fletcherjiang/LLMEPET (commit e33af23).

CG-DETR whose clips and saliency token go through frozen layers of a LLaMA before the decoder
(plug-in `llm_refiner`), with two losses over pseudo-events of the video (plug-ins
`event_regulation` and `position_regulation`). All options of the three plug-ins are options here,
and the deviations of CG-DETR's public code are this one's, too (`models.retrieval.cg_detr`).

What differs from the public code beside those, as options; `fixed` is the default:

weights: the layers come from a file (`trainer llm-layers`) that no checkpoint holds; or controls.
    Public checkpoints hold the LLaMA, and so does a model loaded from one. release: embedded.
layers: 13 to 16, the paper's "14th to 17th". The main scripts give 14, 15, 16. release: those.
attend: clips of a video read each other. The public code attends over the samples of a batch
    (`llm_refiner`). release: batch.
final_norm: its gain. release: loaded, which is what the checkpoint holds.
event_coef, position_coef: the public code reads both from the command line and has neither loss in
    its sum, whatever they are, so that its runs are without them. release: 0.
event_target: `event_head` learns events beside the moments. paper: moments, Eq. 9 as printed,
    with the sum over events.
position_reduction: paper: sum, Eq. 10 as printed.
places: learned; the public code's sines cannot be trained by Eq. 10. release: sine.

The public checkpoints also hold `event_span_embed.*`, `token_fc.*` and a second pair of
`llama_dim_mapper*`, which never got a gradient.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from models.llama_files import meta_name
from models.retrieval.build import MODELS, Blueprint, Dims, ModelFamily
from models.retrieval.cg_detr import (
    CG_INERT,
    CG_NAMES,
    CG_RELEASE,
    CGDETROptions,
    cg_options,
    cg_unused,
)
from models.retrieval.cg_detr import build as cg_build
from models.retrieval.official import Name, OfficialLayout, Weights, mlp_shapes
from models.retrieval.plugins import event_regulation, llm_refiner, position_regulation
from models.retrieval.plugins.event_regulation import EventOptions
from models.retrieval.plugins.llm_refiner import RefinerOptions
from models.retrieval.plugins.position_regulation import PositionOptions

__all__ = ["LLMEPETOptions", "build"]


class LLMEPETOptions(CGDETROptions, RefinerOptions, EventOptions, PositionOptions):
    """Options of CG-DETR and of the three plug-ins; depths are those of QVHighlights."""

    encoder_layers: int = Field(6, ge=1)
    decoder_layers: int = Field(6, ge=1)


def build(dims: Dims, options: LLMEPETOptions) -> Blueprint:
    """CG-DETR with the three plug-ins."""
    blueprint = llm_refiner.apply(cg_build(dims, options), dims, options)
    blueprint = event_regulation.apply(blueprint, dims, options)
    return position_regulation.apply(blueprint, dims, options)


def _of_layer(found: re.Match[str]) -> str:
    return f"transformer.llama.layers.{found[1]}.{meta_name(found[2])}"


_NAMES: tuple[Name, ...] = (
    (r"refiners\.0\.lift\.weight", "transformer.llama_dim_mapper1.weight"),
    (r"refiners\.0\.lower\.weight", "transformer.llama_dim_mapper2.weight"),
    (r"refiners\.0\.layers\.norm", "transformer.llama.norm.weight"),
    (r"refiners\.0\.layers\.layers\.(\d+)\.(\w+)", _of_layer),
    *CG_NAMES,
)

_LIFT = "transformer.llama_dim_mapper1.weight"
_FIRST = "transformer.llama.layers.0."
_CLIPS = "token_fc.weight"


def _number(public: Mapping[str, Any], name: str, default: int) -> int:
    """A public option; one that is there and None was not given either."""
    value = public.get(name)
    return default if value is None else int(value)


def _from_public(public: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """`event_coef` and `pos_coef` are not read: the public code does not use them."""
    options = cg_options(public, weights)
    first, end = _number(public, "first_layer", 7), _number(public, "n_layers", 8)
    options["layers"] = tuple(range(first, end))
    if _CLIPS in weights:
        options["max_clips"] = weights[_CLIPS].shape[1]
    if _LIFT not in weights or f"{_FIRST}{meta_name('gate')}" not in weights:
        return options  # named by the strict check
    heads = _number(public, "llama_heads", 32)
    options["llm_heads"] = heads
    options["llm_width"] = width = weights[_LIFT].shape[0]
    options["llm_hidden"] = weights[f"{_FIRST}{meta_name('gate')}"].shape[0]
    options["llm_kv_heads"] = weights[f"{_FIRST}{meta_name('k')}"].shape[0] * heads // width
    return options


def _unused(recipe: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the public code stores and never reads under this recipe."""
    d, inner = recipe["hidden"], recipe["llm_width"]
    return {
        **cg_unused(recipe),
        **mlp_shapes("event_span_embed", d, d, 2, depth=3),
        "llama_dim_mapper1.weight": (inner, d),
        "llama_dim_mapper2.weight": (d, inner),
        _CLIPS: (recipe["dummies"], recipe["max_clips"]),
        "token_fc.bias": (recipe["dummies"],),
    }


MODELS.register("llmepet")(
    ModelFamily(
        options=LLMEPETOptions,
        presets={
            "release": {
                **CG_RELEASE,
                "weights": "embedded",
                "layers": (14, 15, 16),
                "attend": "batch",
                "final_norm": "loaded",
                "numbers": "float32",
                "checkpointing": False,
                "event_coef": 0.0,
                "position_coef": 0.0,
                "places": "sine",
            },
            "paper": {
                **MODELS.get("cg_detr").presets["paper"],
                "event_target": "moments",
                "event_reduction": "sum",
                "position_reduction": "sum",
            },
        },
        build=build,
        official=OfficialLayout(names=_NAMES, options=_from_public, unused=_unused),
        inert=CG_INERT,
        requires=frozenset({"events"}),
    )
)
