"""Keyword options of things that are chosen by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data.errors import UsageError, nearest
from data.foreign import brief

__all__ = ["check_options", "check_values", "defaults_of"]


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


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in (int, float) and math.isfinite(value),
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "None": lambda value: value is None,
}


def check_values(what: str, build: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """UsageError for a value whose type `build` does not declare.

    Only options that are declared as plain values (`int`, `float | None`, …) are looked at, by the
    text of their annotation; all else is for `build` itself to check.

    Args:
        what: the thing, for the message.
        build: constructor whose keyword-only parameters are the options.
        given: what the user gave, names as `check_options` allows them.
    """
    for name, each in inspect.signature(build).parameters.items():
        types = str(each.annotation).split(" | ")
        plain = name in given and all(kind in _PLAIN for kind in types)
        if plain and not any(_PLAIN[kind](given[name]) for kind in types):
            raise UsageError(
                f"{what}: option '{name}' is {brief(given[name])}; allowed: {each.annotation}"
            )


def defaults_of(build: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of `build` that have a default, with it."""
    return {
        each.name: each.default
        for each in inspect.signature(build).parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY and each.default is not each.empty
    }
