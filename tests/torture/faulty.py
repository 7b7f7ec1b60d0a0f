"""A module `os` that watches, breaks or ends what the store does to its files.

`install` puts a stand-in in the place of the name `os` in the store's own modules (and in pathlib
and shutil, which they use), in the calling process only. Every change below one folder is told to
a hook, which performs it, does half of it, refuses it, or ends the process.
"""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Change", "Hook", "end_at", "install", "recorded", "refuse_at"]


@dataclass(frozen=True)
class Change:
    """One change of the disk.

    Args:
        kind: create, write, append, sync, sync-folder, rename, remove or mkdir.
        path: the file or folder.
        target: new path of a rename.
        data: bytes of a write or append.
    """

    kind: str
    path: Path
    target: Path | None = None
    data: bytes = b""


Perform: TypeAlias = Callable[[bytes | None], Any]
"""Does the change; for writes, with these bytes instead (None: its own)."""

Hook: TypeAlias = Callable[[Change, Perform], Any]

_EXIT_KILLED = 137


def install(folder: Path, hook: Hook) -> None:
    """From now on changes below `folder` go through `hook`."""
    stand_in = _Os(folder.absolute(), hook)
    ours = [each for name, each in sys.modules.items() if name.startswith("data.")]
    for module in [*ours, pathlib, shutil]:
        if getattr(module, "os", None) is os:
            module.os = stand_in  # type: ignore[attr-defined]


def recorded(changes: Callable[[Change], None]) -> Hook:
    """A hook that tells every change before it does it."""

    def hook(change: Change, perform: Perform) -> Any:
        changes(change)
        return perform(None)

    return hook


def end_at(number: int, how: str) -> Hook:
    """End the process at the change of this number, counted from 0.

    Args:
        number: which change.
        how: `before` it, when it is `half` done (writes only), or `after` it.
    """
    count = -1

    def hook(change: Change, perform: Perform) -> Any:
        nonlocal count
        count += 1
        if count != number:
            return perform(None)
        if how == "half":
            perform(change.data[: len(change.data) // 2])
        elif how == "after":
            perform(None)
        os._exit(_EXIT_KILLED)

    return hook


def refuse_at(number: int, code: int, *, lasting: bool = True) -> Hook:
    """Refuse the write of this number, and with `lasting` all later ones, with an error code.

    Of a write that does not fit, half gets onto the disk, as on a real one.
    """
    count = -1

    def hook(change: Change, perform: Perform) -> Any:
        nonlocal count
        count += change.kind not in ("remove", "sync-folder")
        hit = count == number or (lasting and count > number)
        if not hit or change.kind in ("remove", "sync-folder"):
            return perform(None)
        if change.data and code in (errno.ENOSPC, errno.EDQUOT) and count == number:
            return perform(change.data[: len(change.data) // 2])
        raise OSError(code, os.strerror(code), str(change.path))

    return hook


def _can_be_removed(path: Path) -> bool:
    """False for what is not there, or a folder with something in it: that changes nothing."""
    if path.is_dir() and not path.is_symlink():
        return not any(path.iterdir())
    return path.exists() or path.is_symlink()


class _Os:
    """Everything of `os`, with the calls that change files going through a hook."""

    def __init__(self, folder: Path, hook: Hook) -> None:
        self._folder, self._hook = folder, hook
        self._files: dict[int, tuple[Path, bool]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        inside = self._inside(path)
        makes = bool(flags & os.O_CREAT) and not os.path.exists(path)  # noqa: PTH110

        def perform(data: bytes | None = None) -> int:
            del data
            return os.open(path, flags, *args, **kwargs)

        made = self._hook(Change("create", inside), perform) if inside and makes else perform()
        descriptor = int(made)
        if inside is not None:
            self._files[descriptor] = inside, bool(flags & os.O_APPEND)
        return descriptor

    def close(self, descriptor: int) -> None:
        self._files.pop(descriptor, None)
        os.close(descriptor)

    def write(self, descriptor: int, data: Any) -> int:
        path, appends = self._files.get(descriptor, (None, False))
        if path is None:
            return os.write(descriptor, data)
        whole = bytes(data)
        change = Change("append" if appends else "write", path, data=whole)

        def perform(some: bytes | None) -> int:
            return os.write(descriptor, whole if some is None else some)

        return int(self._hook(change, perform))

    def fsync(self, descriptor: int) -> None:
        path, _ = self._files.get(descriptor, (None, False))
        if path is None:
            os.fsync(descriptor)
            return
        kind = "sync-folder" if path.is_dir() else "sync"
        self._hook(Change(kind, path), lambda _: os.fsync(descriptor))

    def replace(self, source: Any, target: Any, **more: Any) -> None:
        self._move(os.replace, source, target, **more)

    def rename(self, source: Any, target: Any, **more: Any) -> None:
        self._move(os.rename, source, target, **more)

    def _move(self, move: Callable[..., None], source: Any, target: Any, **more: Any) -> None:
        inside = self._inside(source)
        if inside is None:
            move(source, target, **more)
            return
        change = Change("rename", inside, Path(target).absolute())
        self._hook(change, lambda _: move(source, target, **more))

    def unlink(self, path: Any, **more: Any) -> None:
        self._one("remove", os.unlink, path, **more)

    def remove(self, path: Any, **more: Any) -> None:
        self._one("remove", os.remove, path, **more)

    def rmdir(self, path: Any, **more: Any) -> None:
        self._one("remove", os.rmdir, path, **more)

    def mkdir(self, path: Any, *args: Any, **more: Any) -> None:
        self._one("mkdir", os.mkdir, path, *args, **more)

    def _one(
        self, kind: str, call: Callable[..., None], path: Any, *args: Any, **more: Any
    ) -> None:
        inside = self._inside(path)
        if inside is None or (kind == "remove" and not _can_be_removed(Path(path))):
            call(path, *args, **more)
            return
        self._hook(Change(kind, inside), lambda _: call(path, *args, **more))

    def _inside(self, path: Any) -> Path | None:
        if not isinstance(path, str | os.PathLike):
            return None
        whole = Path(path).absolute()
        return whole if whole.is_relative_to(self._folder) else None
