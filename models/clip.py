"""The CLIP network, which pictures and texts share: built by open_clip, filled from a checkpoint
or a seed.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
https://arxiv.org/abs/2103.00020. The features of VMR papers are those of `ViT-B-32-quickgelu` with
OpenAI's weights; in `ViT-B-32` (plain GELU) the same weights give other features, so here that
combination is an error where open_clip only warns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data.errors import UsageError
from models.checkpoints import Checkpoint, read_checkpoint, unwrapped
from models.clip_config import (
    DEFAULT_MODEL,
    TINY,
    TINY_MODEL,
    Origin,
    Pictures,
    model_config,
    origin_of,
    other_activation,
    pictures_of,
    same_shapes_other_function,
)
from models.clip_layouts import CLIP_LAYOUTS, FACTS, architecture_of
from models.weights import Weights, fill_seeded, load_strictly, tensors_sha256

__all__ = ["DEFAULT_MODEL", "TINY_MODEL", "BuiltClip", "build_clip", "clip_config"]

FROM_WEIGHTS = "from the weights"
"""Stands for the name of a model whose architecture was told from its checkpoint."""


@dataclass(frozen=True)
class BuiltClip:
    """A CLIP and what is known of it.

    Args:
        net: open_clip's module.
        weights: where its weights come from.
        model: its name, or `FROM_WEIGHTS`.
        config: the architecture in open_clip's words.
        pictures: how it wants its pictures.
    """

    net: nn.Module
    weights: Weights
    model: str
    config: Mapping[str, Any]
    pictures: Pictures

    @property
    def quick_gelu(self) -> bool:
        """Which activation it computes."""
        return any(type(each).__name__ == "QuickGELU" for each in self.net.modules())


def build_clip(
    model: str | None = None,
    checkpoint: Checkpoint | None = None,
    seed: int = 0,
    tag: str | None = None,
    side: Literal["picture", "text"] = "picture",
) -> BuiltClip:
    """A CLIP in evaluation mode, in float32 on the CPU.

    Args:
        model: `TINY_MODEL` or a model name of open_clip; None: what the checkpoint is, told by the
            configuration beside it or by its shapes (then with QuickGELU, unless something tells
            otherwise, as OpenAI's code assumes), or `DEFAULT_MODEL` without checkpoint.
        checkpoint: weights in the layout of OpenAI / open_clip or of Hugging Face; None for seeded
            random ones.
        seed: of the random weights.
        tag: open_clip's name of the training, where the file does not tell it.
        side: which one will compute; of the other one the heads need not be known.

    Raises:
        UsageError: unknown model, checkpoint of something else, or weights that were trained with
            the other activation (QuickGELU or GELU).
    """
    state = None
    origin = origin_of(checkpoint, model, tag)
    if checkpoint is not None:
        state = unwrapped(read_checkpoint(checkpoint), _name_of(checkpoint))
        origin = _with_facts(origin, state)
    name, config = _which(model, state, origin, side)
    # torch's own initialisation would move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        net = _network(name, config)
    if state is None:
        fill_seeded(net, seed, _scale)
        weights = Weights("random", tensors_sha256(net), f"seed {seed}")
    else:
        _check_activation(net, name, origin, _name_of(checkpoint))
        what = f"CLIP '{name}'" if name != FROM_WEIGHTS else "a CLIP"
        weights = load_strictly(net, state, CLIP_LAYOUTS, what, source=_name_of(checkpoint))
    pictures = pictures_of(name, origin, filled=state is not None)
    return BuiltClip(net.eval().requires_grad_(False), weights, name, config, pictures)


def clip_config(model: str | None, checkpoint: Checkpoint | None) -> Mapping[str, Any]:
    """The architecture of what `build_clip` would build; no network is built."""
    if model is not None or checkpoint is None:
        return model_config(model or DEFAULT_MODEL)
    state = unwrapped(read_checkpoint(checkpoint), _name_of(checkpoint))
    return _which(None, state, origin_of(checkpoint, None, None), side="picture")[1]


def _name_of(checkpoint: Checkpoint | None) -> str:
    return Path(checkpoint).name if isinstance(checkpoint, str | Path) else "state dict"


def _with_facts(origin: Origin, state: Mapping[str, Tensor]) -> Origin:
    """OpenAI's own files carry three facts as tensors, which tell that they are OpenAI's."""
    if origin.quick_gelu is not None or not FACTS & state.keys():
        return origin
    return replace(origin, source="OpenAI's file", quick_gelu=True)


def _which(
    model: str | None, state: Mapping[str, Tensor] | None, origin: Origin, side: str
) -> tuple[str, Mapping[str, Any]]:
    """Name and architecture."""
    if model is not None:
        return model, TINY if model == TINY_MODEL else model_config(model)
    if state is None:
        return DEFAULT_MODEL, model_config(DEFAULT_MODEL)
    if origin.model is not None:
        return FROM_WEIGHTS, origin.model
    told = architecture_of(state, origin.heads, side)
    if told is None:
        return DEFAULT_MODEL, model_config(DEFAULT_MODEL)  # loading says what the file is instead
    told = {**told, "quick_gelu": origin.quick_gelu is not False}
    others = same_shapes_other_function(told) if origin.heads is None else []
    if others:
        raise UsageError(
            f"these tensors have the shapes of {' and '.join(others)}, which compute otherwise "
            "than OpenAI's models (heads 64 wide, QuickGELU), and no tensor tells: say which it "
            f"is with option `model`, e.g. model: {others[0]}"
        )
    return FROM_WEIGHTS, told


def _network(name: str, config: Mapping[str, Any]) -> nn.Module:
    from models.compat import ensure_torchvision

    ensure_torchvision()
    import open_clip

    with _quiet():
        if name not in (TINY_MODEL, FROM_WEIGHTS):
            return _made(
                name,
                lambda: open_clip.create_model(
                    name, load_weights=False, pretrained_image=False, pretrained_text=False
                ),
            )
        own = _without_downloads(config)
        custom = config.get("custom_text") or "multimodal_cfg" in own
        if "multimodal_cfg" in own:
            return _made(name, lambda: open_clip.coca_model.CoCa(**own))
        kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
        return _made(name, lambda: kind(**own))


def _without_downloads(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the network; parts that come pretrained from elsewhere get these weights."""
    own = {key: value for key, value in config.items() if key != "custom_text"}
    own["vision_cfg"] = {**own["vision_cfg"], "timm_model_pretrained": False}
    own["text_cfg"] = {**own["text_cfg"], "hf_model_pretrained": False}
    return own


def _made(name: str, make: Any) -> nn.Module:
    try:
        net: nn.Module = make()
    except Exception as error:  # open_clip, timm and transformers have their own errors
        reason = (str(error).splitlines() or ["no reason given"])[0][:300]
        raise UsageError(
            f"open_clip cannot build CLIP '{name}' here ({type(error).__name__}: {reason}); models "
            "with a text side of Hugging Face need its configuration in the local cache"
        ) from error
    return net


@contextmanager
def _quiet() -> Iterator[None]:
    """No warning of a random model, which `Weights` tells better, and no download."""
    from huggingface_hub import constants

    before, offline = logging.root.manager.disable, constants.HF_HUB_OFFLINE
    logging.disable(logging.WARNING)
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        logging.disable(before)
        constants.HF_HUB_OFFLINE = offline


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


def _check_activation(net: nn.Module, model: str, origin: Origin, source: str) -> None:
    has = any(type(each).__name__ == "QuickGELU" for each in net.modules())
    trained = origin.hint if origin.quick_gelu is None else origin.quick_gelu
    if trained is None or trained == has:
        return
    words = {True: "QuickGELU", False: "GELU"}
    told = origin.source if origin.quick_gelu is not None else f"the name of '{source}'"
    advice = f"use model '{other_activation(model, trained)}'"
    if model == FROM_WEIGHTS:
        advice = "name the model of open_clip that this is, with option `model`"
    raise UsageError(
        f"these weights were trained with {words[trained]} ({told} says so), model '{model}' "
        f"computes {words[has]}: the features would be wrong; {advice}"
    )
