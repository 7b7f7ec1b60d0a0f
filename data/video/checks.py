"""What every decoder refuses before it opens a file."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from data.errors import InputError, UsageError
from data.video.types import Video

__all__ = ["MAX_PIXELS", "check_file", "check_size", "no_frames_in_part", "require", "unheard"]

MAX_PIXELS = 8192 * 8192
"""Largest picture that is decoded (8K film is 33 million pixels): a header of a few bytes may
declare a picture that fills the memory of the machine."""


def require(module: str) -> ModuleType:
    """Import the library behind a decoder; UsageError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"the video decoder needs the Python package '{module}', which cannot be imported "
            f"({error}); install it with: pip install 'storyline[pipeline]'"
        ) from error


def check_file(path: Path) -> int:
    """Size in bytes of a readable, non-empty file, else InputError (`missing`, `empty`)."""
    try:
        if not path.is_file():
            kind = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise InputError("missing", f"{path} {kind}; correct the list or put the file there")
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(
            "missing", f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    if size == 0:
        raise InputError("empty", f"{path} has 0 bytes; copy or download it again")
    return size


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse pictures of more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise InputError(
            "undecodable",
            f"{path} declares pictures of {width}x{height}, more than the {MAX_PIXELS:,} pixels "
            "that are decoded; scale it down with ffmpeg first, if it is real",
        )


def no_frames_in_part(video: Video) -> InputError:
    """The error for a `[start_s, end_s)` that holds no frame."""
    end = "the end" if video.end_s is None else f"{video.end_s} s"
    return InputError(
        "no-frames",
        f"{video.path} has no frame in the part from {video.start_s} s to {end}; "
        "correct start_s and end_s in the list",
    )


def unheard() -> None:
    """The `progress` of a decoder that nobody watches."""
