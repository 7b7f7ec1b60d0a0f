"""The CLIP network: built by open_clip, filled from a checkpoint or a seed. Pictures and texts share it.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
https://arxiv.org/abs/2103.00020. The features of VMR papers are those of `ViT-B-32-quickgelu` with
OpenAI's weights; in `ViT-B-32` (plain GELU) the same weights give other features, so here that
combination is an error where open_clip only warns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UsageError, nearest
from models.compat import ensure_torchvision
from models.weights import (
    Checkpoint,
    Layout,
    Weights,
    fill_seeded,
    load_strictly,
    own_layout,
    tensors_sha256,
)

__all__ = ["DEFAULT_MODEL", "TINY_MODEL", "build_clip", "picture_size"]

DEFAULT_MODEL = "ViT-B-32-quickgelu"
TINY_MODEL = "tiny"
"""The narrow ViT of the embedded default; open_clip has no model of this name."""

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
    model: str, checkpoint: Checkpoint | None, seed: int, openai: bool | None = None
) -> tuple[nn.Module, Weights]:
    """A CLIP in evaluation mode, in float32 on the CPU.

    Args:
        model: `TINY_MODEL` or a model name of open_clip.
        checkpoint: a state dict or file in the layout of OpenAI / open_clip or of Hugging Face;
            None for seeded random weights.
        seed: of the random weights.
        openai: whether the checkpoint holds OpenAI's weights, which need QuickGELU; None means that
            it is not known, and then only Hugging Face's layout is taken for them.
    """
    ensure_torchvision()
    # torch's own initialisation would move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        net = _network(model)
    if checkpoint is None:
        fill_seeded(net, seed, _scale)
        weights = Weights("random", tensors_sha256(net), f"seed {seed}")
    else:
        weights = load_strictly(net, checkpoint, _LAYOUTS, f"CLIP '{model}'")
    return net.eval().requires_grad_(False), weights


def _network(model: str) -> nn.Module:
    import open_clip

    if model == TINY_MODEL:
        config = {key: value for key, value in _TINY.items()}
        net: nn.Module = open_clip.model.CLIP(**config)
        return net
    if model not in open_clip.list_models():
        raise UsageError(f"unknown CLIP model '{model}'; {nearest(model, open_clip.list_models())}")
    built: nn.Module = open_clip.create_model(model, load_weights=False)
    return built


def _scale(name: str, tensor: Tensor) -> tuple[float, float]:
    return 0,0

def _from_hugging_face(state: Mapping[str, Tensor], own_names: Iterable[str]) -> dict[str, Tensor]:
    return {}

_LAYOUTS: tuple[Layout, ...] = ()
