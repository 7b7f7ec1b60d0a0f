"""Downloads one file of published weights: resumed when cut, verified, and put in place at once.

Only `pipeline weights fetch` comes here; nothing else of Storyline opens a connection for weights.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from data.errors import UsageError

__all__ = ["Progress", "Published", "download", "verify"]

Progress = Callable[[int, int | None], None]
"""Told the bytes that are there and the bytes of the whole file (None: the server does not say)."""

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0
_AGENT = "storyline-weights"

_LOCAL = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG),
)
"""What goes wrong with files here, not with the network."""


@dataclass(frozen=True)
class Published:
    """What a publisher says of a file.

    Args:
        url: where it is, http or https.
        sha256: of the content, whole or its first digits; None where nothing is said.
        git: git's id of the content; None where it is in no git.
    """

    url: str
    sha256: str | None = None
    git: str | None = None


def download(published: Published, target: Path, progress: Progress = lambda *_: None) -> None:
    """Get a file. What arrived is kept as `target.part` when the connection ends, and continued.

    Raises:
        UsageError: not reachable, refused, cut (say it again to continue), no room, downloaded by
            another program at the same time, a web page instead of a file, or not the content that
            was published; `target` is untouched then.
    """
    if not published.url.startswith(("https://", "http://")):
        raise UsageError(f"'{published.url}' is no address of a file: expected https://…")
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part, target):
            _receive(published, part, progress)
            problem = verify(part, published)
            if problem is None:
                part.replace(target)
            else:
                part.unlink()
            _tag(part).unlink(missing_ok=True)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise UsageError(_why(published.url, target, error)) from None
    if problem is not None:
        raise UsageError(f"what {published.url} gave is not the published file: {problem}")


@contextmanager
def _alone(part: Path, target: Path) -> Iterator[None]:
    """Two that write the same part would spoil it for each other; the system ends the lock."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"'{target}' is being downloaded by another program; wait until it has finished"
            ) from None
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
                _tag(part).unlink(missing_ok=True)


def _why(url: str, target: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _LOCAL:
        return (
            f"'{target}' cannot be written: {error}; make room, or name another folder with --to. "
            "What arrived is kept and continued"
        )
    # An HTTPError has the answer of the server in its text.
    reason = " ".join(str(error).split())
    return (
        f"{url} cannot be downloaded: {reason}; check the network (or a proxy: HTTPS_PROXY), or "
        f"get the file in another way and put it at {target}"
    )


def verify(file: Path, published: Published) -> str | None:
    """Half a sentence if the content is not what was published; None if it is, or nobody says."""
    size = file.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as content:
        head = content.read(64)
        if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
            return "it is a web page"
        content.seek(0)
        while chunk := content.read(_CHUNK):
            sha256.update(chunk)
            if published.git is not None:
                git.update(chunk)
    for name, told, found in (
        ("sha256", published.sha256, sha256.hexdigest()),
        ("git id", published.git, git.hexdigest()),
    ):
        if told is not None and not found.startswith(told):
            return f"its {name} is {found}, published is {told}"
    return None


def _receive(published: Published, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    tag = _tag(part).read_text() if _tag(part).is_file() else ""
    if not tag and published.sha256 is None and published.git is None:
        have = 0  # nothing would notice if the two halves were of different files
    request = urllib.request.Request(published.url, headers={"User-Agent": _AGENT})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if tag:
            request.add_header("If-Range", tag)
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.unlink()  # more than the file has: begin again
        _tag(part).unlink(missing_ok=True)
        return _receive(published, part, progress)
    with answer:
        begins = answer.headers.get("Content-Range", f"bytes {have}-")
        if answer.status != 206:
            have = 0
        elif not begins.startswith(f"bytes {have}-"):
            raise OSError(
                f"the server sent another part ({begins[:60]}) than the rest from {have:,}"
            )
        _tag(part).write_text(_strong(answer.headers.get("ETag")))
        length = answer.headers.get("Content-Length")
        whole = have + int(length) if length is not None and length.isdecimal() else None
        _write(answer, part, have, whole, progress)
    return None


def _write(
    answer: HTTPResponse, part: Path, have: int, whole: int | None, progress: Progress
) -> None:
    with part.open("r+b" if have else "wb") as file:
        file.seek(have)
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            have += len(chunk)
            progress(have, whole)
        file.flush()
        os.fsync(file.fileno())
    if whole is not None and have < whole:
        raise OSError(f"the connection ended after {have:,} of {whole:,} bytes; again continues")


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _strong(tag: str | None) -> str:
    """A weak ETag does not promise equal bytes, so it cannot continue a download."""
    return "" if tag is None or tag.startswith("W/") else tag
