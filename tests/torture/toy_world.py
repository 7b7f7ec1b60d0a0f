"""The toy stages of tests/pipeline in the place of the real ones, in this process and its forks."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from .processes import TOYS

__all__ = ["toy_module", "use_toys"]


def toy_module() -> ModuleType:
    """tests/pipeline/toys.py, which is found by its folder."""
    if str(TOYS) not in sys.path:
        sys.path.insert(0, str(TOYS))
    return importlib.import_module("toys")


def use_toys(*more: type) -> None:
    """Let the registry of stages hold the real stages, the toys and `more`.

    A toy and a real stage may have the same name (`probe`); then the toy counts.
    """
    toys = toy_module()
    import pipeline.stages  # noqa: F401 - the real ones register first
    from pipeline.stage import STAGES

    STAGES._things = toys.toy_registry() | {each.name: each for each in more}  # type: ignore[attr-defined]
