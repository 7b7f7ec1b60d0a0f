"""Lengths of what a CLIP gives, known without building it: a plan must not pay for a network."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from models.clip_config import DEFAULT_MODEL, TINY_MODEL, model_config
from models.zoo import resolve
from pipeline.stages.common import NetworkOptions

__all__ = ["clip_dims"]


def clip_dims(options: NetworkOptions) -> tuple[int, int]:
    """(token state, projected vector) of the CLIP of these options.

    Raises:
        UsageError: an unknown model, or a checkpoint that is not found or no CLIP.
    """
    named = options.options.get("model", TINY_MODEL if options.preset == "tiny" else None)
    if named is not None or options.checkpoint is None:
        return _dims(model_config(named or DEFAULT_MODEL))
    path = resolve(options.checkpoint)
    return _of_file(path, path.stat().st_mtime_ns)


@lru_cache
def _of_file(path: Path, mtime_ns: int) -> tuple[int, int]:
    """The tensors are read once per file; the time tells a changed file from a known one."""
    del mtime_ns
    from models.clip import clip_config

    return _dims(clip_config(None, path))


def _dims(config: Any) -> tuple[int, int]:
    embed_dim = int(config["embed_dim"])
    return int(config["text_cfg"].get("width", embed_dim)), embed_dim
