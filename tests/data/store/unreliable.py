"""A file system whose calls fail, tear and remember when a test says so; the rest is real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from upath.implementations.memory import MemoryPath
from upath.registry import register_implementation

__all__ = ["Unreliable", "register"]

Call = Callable[[], Any]
Fault = Callable[[int, Call], Any]


class Unreliable(MemoryFileSystem):  # type: ignore[misc]
    """fsspec's memory with faults: name of a method to what becomes of its n-th call (from 1)."""

    protocol = "unreliable"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[dict[str, Fault]] = {}
    calls: ClassVar[Counter[str]] = Counter()
    remembered: ClassVar[dict[str, Any]] = {}
    """Listings, which are answered again until they are declared old, as s3fs does."""

    @classmethod
    @contextmanager
    def behaving(cls, **faults: Fault) -> Iterator[Counter[str]]:
        """Gives the calls that are made meanwhile, by method."""
        cls.faults, cls.calls = faults, Counter()
        try:
            yield cls.calls
        finally:
            cls.faults = {}

    @classmethod
    def clear(cls) -> None:
        """Remove everything."""
        cls.store.clear()
        cls.remembered.clear()
        cls.pseudo_dirs[:] = [""]

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(
            MemoryFileSystem._strip_protocol(str(path).replace("unreliable://", "memory://"))
        )

    def _do(self, name: str, call: Call) -> Any:
        self.calls[name] += 1
        fault = self.faults.get(name)
        return call() if fault is None else fault(self.calls[name], call)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        def write() -> None:
            super(Unreliable, self).pipe_file(path, value, mode, **kwargs)

        self._do("pipe_file", write)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> Any:
        def read() -> Any:
            return super(Unreliable, self).cat_file(path, start, end, **kwargs)

        return self._do("cat_file", read)

    def info(self, path: str, **kwargs: Any) -> Any:
        return self._do("info", lambda: super(Unreliable, self).info(path, **kwargs))

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        self._do("mv", lambda: super(Unreliable, self).mv(path1, path2, **kwargs))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        if path not in self.remembered:
            self.remembered[path] = self._do(
                "ls", lambda: super(Unreliable, self).ls(path, detail=True, **kwargs)
            )
        rows = self.remembered[path]
        return rows if detail else [row["name"] for row in rows]

    def invalidate_cache(self, path: str | None = None) -> None:
        if path is None:
            self.remembered.clear()
        else:
            self.remembered.pop(self._strip_protocol(path), None)


class UnreliablePath(MemoryPath):
    """Without one of its own a path warns."""


def register() -> None:
    """Make `unreliable://` known."""
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    register_implementation("unreliable", UnreliablePath, clobber=True)
