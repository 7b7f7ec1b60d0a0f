"""What every decoder refuses before it opens a file."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from data.errors import InputError, UsageError, how_to_install
from data.foreign import kind_of_file
from data.video.signatures import is_container
from data.video.types import Video

__all__ = ["check_container", "check_file", "no_frames_in_part", "require", "unheard"]


def require(module: str, *, extra: str = "pipeline", also: str = "") -> ModuleType:
    """Import the library behind a decoder; UsageError with the command that installs it.

    Args:
        module: its import name.
        extra: the extra of this project that installs it.
        also: what it needs that pip does not install.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec: RuntimeError, no FFmpeg
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"the video decoder needs the Python package '{module.partition('.')[0]}', which "
            f"cannot be imported ({said}); install it: {how_to_install(extra)}"
            + (f"; {also}" if also else "")
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


def check_container(path: Path, decoder: str) -> None:
    """Refuse what does not begin as a media file: a playlist would name other files.

    For decoders that cannot be told which demuxers to use.
    """
    if not is_container(path):
        raise InputError(
            "not-media",
            f"{path} does not begin as a media file that {decoder} may open (MP4, Matroska, "
            "AVI, MPEG, FLV, ASF, Ogg, MXF): it is a playlist, text, or a bare stream of pictures; "
            "use decoder 'pyav' or leave it out",
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
