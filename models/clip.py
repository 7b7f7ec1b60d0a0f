"""The CLIP network, which pictures and texts share: built by open_clip, filled from a checkpoint
or a seed.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
https://arxiv.org/abs/2103.00020. The features of VMR papers are those of `ViT-B-32-quickgelu` with
OpenAI's weights; in `ViT-B-32` (plain GELU) the same weights give other features, so here that
combination is an error where open_clip only warns.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UsageError, nearest
from data.foreign import read_limited, strict_json
from models.compat import ensure_torchvision
from models.weights import (
    Checkpoint,
    Layout,
    Weights,
    fill_seeded,
    load_strictly,
    read_checkpoint,
    tensors_sha256,
)

__all__ = ["DEFAULT_MODEL", "TINY_MODEL", "build_clip"]

DEFAULT_MODEL = "ViT-B-32-quickgelu"
TINY_MODEL = "tiny"
"""The narrow ViT of the embedded default; open_clip has no model of this name."""

_MAX_CONFIG_BYTES = 1 << 20

_TINY: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 4,
        "layers": 2,
    },
}


def build_clip(
    model: str, checkpoint: Checkpoint | None = None, seed: int = 0
) -> tuple[nn.Module, Weights]:
    """A CLIP in evaluation mode, in float32 on the CPU.

    Args:
        model: `TINY_MODEL` or a model name of open_clip.
        checkpoint: weights in the layout of OpenAI / open_clip or of Hugging Face; None for seeded
            random ones.
        seed: of the random weights.

    Raises:
        UsageError: unknown model, checkpoint of something else, or weights that were trained with
            the other activation (QuickGELU or GELU).
    """
    ensure_torchvision()
    # torch's own initialisation would move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        net = _network(model)
    if checkpoint is None:
        fill_seeded(net, seed, _scale)
        weights = Weights("random", tensors_sha256(net), f"seed {seed}")
    else:
        _check_activation(net, model, checkpoint)
        weights = load_strictly(net, checkpoint, _LAYOUTS, f"CLIP '{model}'")
    return net.eval().requires_grad_(False), weights


def _network(model: str) -> nn.Module:
    import open_clip

    if model == TINY_MODEL:
        net: nn.Module = open_clip.model.CLIP(**_TINY)
        return net
    known = open_clip.list_models()
    if model not in known:
        raise UsageError(f"unknown CLIP model '{model}'; {nearest(model, [*known, TINY_MODEL])}")
    # open_clip warns of a random model also where weights follow; `Weights` tells the truth.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        built: nn.Module = open_clip.create_model(
            model, load_weights=False, pretrained_image=False, pretrained_text=False
        )
    finally:
        logging.disable(before)
    return built


def _scale(name: str, tensor: Tensor) -> tuple[float, float]:
    """Offset and amplitude of a random transformer whose features stay close to what it sees.

    Every linear layer keeps the variance of its input; positions and the class token are weak
    against patches. Attention is then nearly uniform: it gathers colours and shapes from everywhere
    (with sharper attention a linear probe for shape fell from 0.61 to 0.49 of 4 classes).
    """
    leaf = name.rsplit(".", 1)[-1]
    if ".ln_" in name or name.startswith("ln_"):
        return (1.0, 0.0) if leaf == "weight" else (0.0, 0.0)
    if "positional_embedding" in name:
        return 0.0, 0.2
    if "class_embedding" in name:
        return 0.0, 0.05
    if "token_embedding" in name:
        return 0.0, 1.7
    if "bias" in name:
        return 0.0, 0.1
    if tensor.ndim < 2:
        return 0.0, 0.0
    projection = leaf in {"proj", "text_projection"}
    fan_in = tensor.shape[0] if projection else tensor[0].numel()
    return 0.0, float((3 / fan_in) ** 0.5)


def _check_activation(net: nn.Module, model: str, checkpoint: Checkpoint) -> None:
    trained_with = _activation_of(checkpoint)
    has = any(type(each).__name__ == "QuickGELU" for each in net.modules())
    if trained_with is not None and trained_with != has:
        words = {True: "QuickGELU", False: "GELU"}
        other = re.sub("-quickgelu$", "", model) + ("-quickgelu" if trained_with else "")
        raise UsageError(
            f"these weights were trained with {words[trained_with]}, model '{model}' computes "
            f"{words[has]}: the features would be wrong; use model '{other}'"
        )


def _activation_of(checkpoint: Checkpoint) -> bool | None:
    """Whether the weights want QuickGELU; None if nothing tells."""
    if not isinstance(checkpoint, Mapping):
        path = Path(checkpoint)
        config = (path if path.is_dir() else path.parent) / "config.json"
        if config.is_file():
            vision = _json_object(config).get("vision_config")
            if isinstance(vision, dict):
                return bool(vision.get("hidden_act", "quick_gelu") == "quick_gelu")
        if "openai" in path.name.lower():
            return True
    # OpenAI's own files carry these three facts as tensors.
    return True if "input_resolution" in read_checkpoint(checkpoint) else None


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = strict_json(read_limited(file, _MAX_CONFIG_BYTES, "the configuration"))
    except ValueError as error:
        raise UsageError(f"'{file}' beside the checkpoint is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


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
    del own_names
    facts = {"input_resolution", "context_length", "vocab_size"}
    return {key: value for key, value in state.items() if key not in facts}


_LAYOUTS = (
    Layout(
        "Hugging Face",
        lambda state: "text_model.embeddings.token_embedding.weight" in state,
        _from_hugging_face,
    ),
    Layout("OpenAI / open_clip", lambda state: "logit_scale" in state, _from_openai),
)
