"""Which options each method of `parse` reads, and which values they may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["READS", "check_given"]

_OF_SCORES = frozenset({"half_width_s", "scales", "pool", "similarity", "taper", "edges"})

READS: Mapping[str, frozenset[str]] = {
    "rtp": _OF_SCORES | {"min_len_s", "delta_rel", "settle", "max_events", "max_depth"},
    "oneshot": _OF_SCORES | {"max_events"},
    "eatr-compat": frozenset({"padded_len", "max_events"}),
    "kts": (_OF_SCORES - {"similarity"}) | {"min_len_s", "penalty", "max_events"},
    "uniform": _OF_SCORES | {"max_events"},
}
"""Options by method. "kts" and "uniform" do not cut by the scores, but give them back with their
events; "kts" cuts by the cosine, so that another similarity would belie it."""

_WHOLE = {"max_events": 1, "max_depth": 0, "padded_len": 1}  # the least


def check_given(method: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse what has no effect, and what no option can be.

    Args:
        method: one of `READS`.
        given: value by option.
        defaults: of every option. An option that has its default counts as left out.

    Raises:
        ValueError: an option that the method, or with these others, does not read; a value that
            is none.
    """
    told = [name for name, value in given.items() if not _same(value, defaults[name])]
    for name in told:
        if name not in READS[method]:
            readers = [other for other, names in READS.items() if name in names]
            raise ValueError(
                f"{name} means nothing to method {method!r}: leave it out (as is "
                f"{defaults[name]!r}, its default), or take {' or '.join(readers)}"
            )
    if given["scales"] is not None and "half_width_s" in told:
        raise ValueError(
            f"half_width_s means nothing where scales are given: leave out one of them (as is "
            f"{defaults['half_width_s']!r}, the default of half_width_s)"
        )
    if given["scales"] is None and "pool" in told:
        raise ValueError(f"pool {given['pool']!r} means nothing without scales: give scales, too")
    if given["settle"] is not None and "similarity" in told:
        raise ValueError(
            "settle compares clips by their cosine: leave it out, or similarity (as is "
            f"{defaults['similarity']!r}, its default)"
        )
    _check_values(given)


def _check_values(given: Mapping[str, Any]) -> None:
    scales = given["scales"]
    if scales is not None and not len(scales):
        raise ValueError("scales must name at least one half width in seconds")
    for name, seconds in [
        ("half_width_s", given["half_width_s"]),
        *(("scales", each) for each in (scales if scales is not None else ())),
    ]:
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"{name} must be finite and above 0 seconds, got {seconds}")
    if not (math.isfinite(given["min_len_s"]) and given["min_len_s"] >= 0):
        raise ValueError(f"min_len_s must be finite and 0 or more, got {given['min_len_s']}")
    if not 0 <= given["delta_rel"] <= 1:
        raise ValueError(f"delta_rel must be in [0, 1], got {given['delta_rel']}")
    for name, least in _WHOLE.items():
        value = given[name]
        if value is not None and not (isinstance(value, int | np.integer) and value >= least):
            raise ValueError(f"{name} must be at least {least}, a whole number, got {value}")


def _same(value: Any, default: Any) -> bool:
    return value is default or (not isinstance(value, np.ndarray) and value == default)
