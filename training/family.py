"""What there is in the retrieval family, for people who choose."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from data.errors import UsageError
from models.retrieval import MODELS, PLUGINS, PRESETS, Preset, create_model

__all__ = ["describe", "size"]


def describe(video_dim: int, text_dim: int) -> dict[str, Any]:
    """Models and plug-ins as plain values.

    Args:
        video_dim: features of a clip, with the two TEF columns.
        text_dim: features of a word, and of every side stream.

    Returns:
        `models` and `plugins` by name. A model has `paper`, `requires` (what batches must carry
        beside video and text), `options` with their defaults, `presets` with what each changes,
        and `parameters` of each preset (`all`, and `trained`: not frozen; or `unknown`: why it
        cannot be built without further options). A plug-in has `paper`,
        `stage`, `requires`, `options`, `off` (options under which it does nothing), `conflicts`.
    """
    models = {}
    for name in MODELS:
        family = MODELS.get(name)
        models[name] = {
            "paper": _first_line(family.build),
            "requires": sorted(family.requires),
            "options": family.options().model_dump(mode="json"),
            "presets": {each: dict(family.presets.get(each, {})) for each in PRESETS},
            "parameters": {each: size(name, each, video_dim, text_dim) for each in PRESETS},
        }
    plugins = {}
    for name in PLUGINS:
        plugin = PLUGINS.get(name)
        plugins[name] = {
            "paper": _first_line(plugin.apply),
            "stage": plugin.stage,
            "requires": sorted(plugin.requires),
            "options": plugin.options().model_dump(mode="json"),
            "off": dict(plugin.off),
            "conflicts": dict(plugin.conflicts),
        }
    return {"models": models, "plugins": plugins, "video_dim": video_dim, "text_dim": text_dim}


def size(name: str, preset: Preset, video_dim: int, text_dim: int) -> dict[str, Any]:
    """Parameters of a model, without giving them memory.

    Args:
        name: of the model.
        preset: its options.
        video_dim: features of a clip, with the two TEF columns.
        text_dim: features of a word, and of every side stream that it reads.

    Returns:
        `all`, and `trained`: not frozen; or `unknown`: why it cannot be built without further
        options, e.g. a file of weights.
    """
    sides = [need.removeprefix("side.") for need in MODELS.get(name).requires if "." in need]
    try:
        with torch.device("meta"):
            model = create_model(
                name,
                video_dim=video_dim,
                text_dim=text_dim,
                preset=preset,
                side_dims=dict.fromkeys(sides, text_dim),
            )
    except UsageError as error:
        return {"unknown": str(error)}
    counts = [(each.numel(), each.requires_grad) for each in model.parameters()]
    return {
        "all": sum(count for count, _ in counts),
        "trained": sum(count for count, trained in counts if trained),
    }


def _first_line(function: Callable[..., Any]) -> str:
    """Of the docstring of the module that a function is in."""
    return (sys.modules[function.__module__].__doc__ or "").strip().split("\n")[0]
