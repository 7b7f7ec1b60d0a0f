"""Names of CLIP's tensors, OpenAI's (open_clip's) and Hugging Face's, and what shapes tell."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor

from data.errors import UsageError
from models.weights import Layout

__all__ = ["CLIP_LAYOUTS", "FACTS", "architecture_of"]

FACTS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Whole numbers that OpenAI's own files carry among the weights."""

_HEAD_WIDTH = 64
"""OpenAI's code derives the heads from the width; no tensor tells them."""

_HF_PROBE = "text_model.embeddings.token_embedding.weight"

_HF_BLOCKS = (
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
)
_HF_NAMES = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_TRANSPOSED = frozenset({"visual.proj", "text_projection"})


def _hugging_face_name(name: str) -> str:
    """The name in transformers' CLIPModel; for `in_proj` that of its query part."""
    found = re.match(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
    if found is None:
        stem, _, leaf = name.rpartition(".")
        return _HF_NAMES.get(name) or f"{_HF_NAMES.get(stem, '?')}.{leaf}"
    tower = "vision_model" if found[1] else "text_model"
    rest = re.sub(r"attn\.in_proj_", "self_attn.q_proj.", found[3])
    for own, theirs in _HF_BLOCKS:
        rest = re.sub(rf"^{re.escape(own)}\.", f"{theirs}.", rest)
    return f"{tower}.encoder.layers.{found[2]}.{rest}"


def _from_hugging_face(state: Mapping[str, Tensor], own_names: Iterable[str]) -> dict[str, Tensor]:
    rest = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    converted: dict[str, Tensor] = {}
    for own in own_names:
        theirs = _hugging_face_name(own)
        parts = [theirs]
        if "in_proj_" in own:
            parts = [theirs.replace("q_proj", f"{part}_proj") for part in "qkv"]
        if all(part in rest for part in parts):
            value = torch.cat([rest.pop(part) for part in parts]) if parts[1:] else rest.pop(theirs)
            converted[own] = value.T if own in _TRANSPOSED else value
    return converted | rest


def _from_openai(state: Mapping[str, Tensor], own_names: Iterable[str]) -> dict[str, Tensor]:
    own = set(own_names)
    # The causal mask is a constant that some programs store among the weights.
    left_out = {key for key in state if key in FACTS or key.rsplit(".", 1)[-1] == "attn_mask"}
    given = {key: value for key, value in state.items() if key not in left_out - own}
    if not {"text.positional_embedding", "positional_embedding"} <= own | given.keys():
        return given
    # Models whose text tower open_clip later put apart: the same tensors under `text.`
    return {f"text.{key}" if f"text.{key}" in own else key: value for key, value in given.items()}


CLIP_LAYOUTS = (
    Layout("Hugging Face", lambda state: _HF_PROBE in state, _from_hugging_face),
    Layout("OpenAI / open_clip", lambda state: "logit_scale" in state, _from_openai),
)


def architecture_of(
    state: Mapping[str, Tensor], heads: tuple[int, int] | None, side: str
) -> dict[str, Any] | None:
    """The configuration, in open_clip's words but for the activation, that the shapes tell.

    Args:
        state: a CLIP of OpenAI's architecture (ViT or ResNet), or a ViT of Hugging Face.
        heads: attention heads of the picture and the text side; None: width / 64, OpenAI's rule.
        side: "picture" or "text": the heads of the other one need not be known, since they change
            neither its tensors nor what this one computes.

    Returns:
        The configuration; None if these are no tensors of such a CLIP.

    Raises:
        UsageError: a CLIP whose heads cannot be told.
    """
    shapes = _Shapes(state)
    if not shapes.has("token_embedding.weight") or not shapes.has("ln_final.weight"):
        return None
    if shapes.has("visual.proj"):
        vision = _vision_transformer(shapes, heads and heads[0], wanted=side == "picture")
    elif shapes.has("visual.attnpool.positional_embedding"):
        vision = _vision_resnet(shapes)
    else:
        return None
    (width,) = shapes.of("ln_final.weight")
    context, _ = shapes.of("positional_embedding")
    vocabulary, _ = shapes.of("token_embedding.weight")
    text = {
        "context_length": context,
        "vocab_size": vocabulary,
        "width": width,
        "heads": heads[1] if heads else _text_heads(width, wanted=side == "text"),
        "layers": shapes.layers("transformer.resblocks.{}.ln_1.weight"),
    }
    embed_dim = shapes.of("text_projection")[1]
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}


class _Shapes:
    """Shapes by OpenAI's names, whichever names the tensors have."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._foreign = _HF_PROBE in state

    def has(self, name: str) -> bool:
        return self._name(name) in self._state

    def of(self, name: str) -> tuple[int, ...]:
        found = self._state.get(self._name(name))
        if found is None:
            raise UsageError(f"the checkpoint is a CLIP without the tensor {self._name(name)}")
        shape = tuple(found.shape)
        return shape[::-1] if self._foreign and name in _TRANSPOSED else shape

    def layers(self, pattern: str) -> int:
        return next(n for n in count() if not self.has(pattern.format(n)))

    def _name(self, name: str) -> str:
        return _hugging_face_name(name) if self._foreign else name


def _vision_transformer(shapes: _Shapes, heads: int | None, wanted: bool) -> dict[str, Any]:
    width, _, patch, _ = shapes.of("visual.conv1.weight")
    positions, _ = shapes.of("visual.positional_embedding")
    hidden = shapes.of("visual.transformer.resblocks.0.mlp.c_fc.weight")[0]
    return {
        "image_size": patch * math.isqrt(positions - 1),
        "layers": shapes.layers("visual.transformer.resblocks.{}.ln_1.weight"),
        "width": width,
        "head_width": width // (heads or _picture_heads(width, wanted)),
        "patch_size": patch,
        "mlp_ratio": hidden / width,
    }


def _vision_resnet(shapes: _Shapes) -> dict[str, Any]:
    positions, _ = shapes.of("visual.attnpool.positional_embedding")
    return {
        "image_size": 32 * math.isqrt(positions - 1),
        "layers": [
            shapes.layers(f"visual.layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3, 4)
        ],
        "width": shapes.of("visual.layer1.0.conv1.weight")[0],
        "patch_size": None,
    }


def _picture_heads(width: int, wanted: bool) -> int:
    """OpenAI's code knows no other number: `vision_heads = vision_width // 64` in clip/model.py."""
    heads = max(1, width // _HEAD_WIDTH)
    if wanted and (width < _HEAD_WIDTH or width % heads):
        raise _untold("picture", width)
    return heads if width % heads == 0 else 1


def _text_heads(width: int, wanted: bool) -> int:
    """An argument in OpenAI's code, which is width / 64 in all of its models."""
    if width % _HEAD_WIDTH == 0:
        return width // _HEAD_WIDTH
    if wanted:
        raise _untold("text", width)
    return 1


def _untold(side: str, width: int) -> UsageError:
    return UsageError(
        f"the {side} side of this CLIP is {width} wide, no multiple of {_HEAD_WIDTH}, so its "
        "number of attention heads cannot be told from the tensors; name the model, or give "
        "the folder with its open_clip_config.json or config.json"
    )
