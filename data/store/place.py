"""Where a store may be: a folder of this machine, or of anything that fsspec reaches.

`file:///a/b` and `/a/b` are the same folder. Credentials and endpoints come from the environment
and from fsspec's own configuration files, never from a URL or a config of ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

from upath import UPath

from data.errors import UsageError

__all__ = ["Place", "is_url", "place_of"]

Place: TypeAlias = Path | UPath
"""A local `Path`, or a `UPath` of an object store or network file system."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a path."""
    return _URL.match(text) is not None


def place_of(where: str | Place) -> Place:
    """The place that a path or URL names.

    Raises:
        UsageError: a scheme that fsspec does not know, or whose package is not installed.
    """
    if not isinstance(where, str):
        return where
    scheme = _URL.match(where)
    if scheme is None:
        return Path(where)
    if scheme[1] in ("file", "local"):
        return Path(where[scheme.end() :])
    try:
        # Without this s3fs would answer from listings that it made before others wrote.
        return UPath(where, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"'{where}' cannot be reached: {error}; allowed are a folder, file://, s3:// (pip "
            "install 'storyline[s3]'), gs:// ('storyline[gs]') and what fsspec knows"
        ) from error
