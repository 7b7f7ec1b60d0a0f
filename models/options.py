"""Keyword options of things that are chosen by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from data.errors import UsageError, nearest

__all__ = ["check_options", "defaults_of"]


def check_options(what: str, build: Callable[..., Any], given: Iterable[str]) -> None:
    """UsageError, with the nearest allowed name, for a keyword that `build` does not take.

    Args:
        what: the thing, for the message.
        build: constructor whose keyword-only parameters are the options.
        given: names that the user gave.
    """
    allowed = [
        each.name
        for each in inspect.signature(build).parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in given:
        if name not in allowed:
            raise UsageError(f"{what}: unknown option '{name}'; {nearest(name, allowed)}")


def defaults_of(build: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of `build` that have a default, with it."""
    return {
        each.name: each.default
        for each in inspect.signature(build).parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY and each.default is not each.empty
    }
