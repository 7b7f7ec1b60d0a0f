"""Files of public code.

Nothing is unpickled but tensors, plain containers and namespaces (`argparse.Namespace` and
`types.SimpleNamespace`), in which public code keeps its options.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from data.errors import UsageError
from models.safe_load import load_plain

__all__ = ["read_checkpoint"]

_NAMESPACES = (argparse.Namespace, SimpleNamespace)


def read_checkpoint(
    checkpoint: Path | str | Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights (without the `module.` of DDP) and options of a public checkpoint.

    Args:
        checkpoint: a file of the public code, or a mapping with `model` (state dict) and `opt`.

    Raises:
        UsageError: the file is not there, cannot be read safely, or lacks one of the two.
    """
    content = _load(Path(checkpoint)) if isinstance(checkpoint, Path | str) else checkpoint
    missing = [key for key in ("model", "opt") if key not in content]
    if missing:
        raise UsageError(
            f"a public checkpoint holds 'model' and 'opt'; this has no "
            f"{' and no '.join(missing)}, only {', '.join(sorted(map(str, content))) or 'nothing'}"
        )
    options, weights = content["opt"], content["model"]
    options = vars(options) if isinstance(options, _NAMESPACES) else options
    if not isinstance(options, Mapping) or not _is_state(weights):
        raise UsageError(
            "a public checkpoint holds tensors by name in 'model' and options in 'opt'; "
            "this one holds something else there"
        )
    return {key.removeprefix("module."): x for key, x in weights.items()}, dict(options)


def _is_state(weights: Any) -> bool:
    return isinstance(weights, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    )


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}; give the path of a file of the public code")
    content = load_plain(path, also=_NAMESPACES)
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, not a mapping with 'model'")
    return content
