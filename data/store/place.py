"""Where a store may be: a folder of this machine, or of anything that fsspec reaches.

`file:///a/b` and `/a/b` are the same folder. Credentials and endpoints come from the environment
and from fsspec's own configuration files, never from a URL or a config of ours.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import fsspec
from pydantic import PlainSerializer, PlainValidator
from upath import UPath

from data.errors import UsageError, how_to_install

__all__ = ["Place", "PlaceOption", "anchored", "is_url", "place_of", "text_of"]

Place: TypeAlias = Path | UPath
"""A local `Path`, or a `UPath` of an object store or network file system."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_CHAIN = re.compile(r"[A-Za-z0-9+.-]+::")
_SECRET = re.compile(r"(?<=://)[^/]*:[^/]*@")
_REMEMBER_LISTINGS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl"}
"""File systems that answer from listings that they made before others wrote, unless told."""


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a path."""
    return _URL.match(text) is not None or _CHAIN.match(text) is not None


def place_of(where: str | Place) -> Place:
    """The place that a path or URL names.

    Raises:
        UsageError: a scheme that fsspec does not know, or whose package is not installed; a URL
            with a password in it.
    """
    if not isinstance(where, str):
        return where
    if not is_url(where):
        return Path(where)
    scheme = _URL.match(where)
    if scheme is None:
        raise UsageError(
            f"'{where}' is a chain of file systems; name the last one alone, e.g. s3://bucket/store"
        )
    if _SECRET.search(where):
        raise UsageError(
            f"'{_SECRET.sub('…@', where)}' carries a key or password, which would end up in logs "
            "and recipes; give it by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, FSSPEC_…) or fsspec's configuration files"
        )
    if scheme[1] in ("file", "local"):
        return Path(where[scheme.end() :])
    options = {"use_listings_cache": False} if scheme[1] in _REMEMBER_LISTINGS else {}
    bare = where.rstrip("/") if where[scheme.end() :].strip("/") else where
    try:
        fsspec.get_filesystem_class(scheme[1])  # imports the package behind it
        return UPath(bare, protocol=scheme[1], **options)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"'{where}' cannot be reached: {error}; allowed are a folder, file://, s3:// "
            f"({how_to_install('s3')}), gs:// (the same with '.[gs]') and what fsspec knows"
        ) from error


def text_of(place: Place) -> str:
    """The path or URL from which `place_of` makes the place again."""
    if isinstance(place, Path) or "host" not in place.storage_options:
        return str(place)
    # `UPath('sftp://host/a')` keeps the host among its options and prints sftp:///a.
    options = place.storage_options
    user, port = options.get("username", options.get("user")), options.get("port")
    host = (f"{user}@" if user else "") + options["host"] + (f":{port}" if port else "")
    return f"{place.protocol}://{host}/{place.path.lstrip('/')}"


def anchored(place: Place) -> Place:
    """A local folder by its absolute path; a remote place has no other name."""
    # not Path.resolve, which raises for a link to itself
    return Path(os.path.realpath(place)) if isinstance(place, Path) else place


def _from_config(value: Any) -> Place:
    if not isinstance(value, str | Path | UPath):
        raise ValueError(f"must be a folder or a URL, got {value!r}")
    try:
        return place_of(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


PlaceOption = Annotated[Place, PlainValidator(_from_config), PlainSerializer(text_of)]
"""An option of a configuration that names a place by path or URL."""
