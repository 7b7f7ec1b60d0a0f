"""What every decoder refuses before it opens a file."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from data.errors import InputError, UsageError, how_to_install
from data.foreign import kind_of_file
from data.video.types import Video

__all__ = ["check_file", "no_frames_in_part", "require", "unheard"]


def require(module: str) -> ModuleType:
    """Import the library behind a decoder; UsageError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"the video decoder needs the Python package '{module}', which cannot be imported "
            f"({error}); install it: {how_to_install('pipeline')}"
        ) from error


def check_file(path: Path) -> int:
    """Size in bytes of a readable, non-empty regular file, else InputError (`missing`, `empty`).

    Pipes and devices are refused before they are opened: reading one may never end.
    """
    kind = kind_of_file(path)
    if kind != "file":
        raise InputError("missing", f"{path} {kind}; correct the list or put the file there")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(
            "missing", f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    if size == 0:
        raise InputError("empty", f"{path} has 0 bytes; copy or download it again")
    return size


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
