"""One kind of registry for everything that is chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from data.errors import UsageError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things. A duplicate name raises; an unknown name lists the known ones.

    Args:
        kind: what the things are, for error messages ("stage", "captioner").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}
        self._offers: dict[str, Callable[[], object]] = {}

    def offer(self, name: str, load: Callable[[], object]) -> None:
        """`load` imports the module that registers `name`; called when it is first asked for."""
        if name in self:
            raise ValueError(f"{self.kind} '{name}' is offered twice")
        self._offers[name] = load

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files the decorated thing under `name`."""

        def add(thing: T) -> T:
            if name in self._things:
                raise ValueError(
                    f"{self.kind} '{name}' is registered twice: {self._things[name]} and {thing}"
                )
            self._things[name] = thing
            return thing

        return add

    def get(self, name: str) -> T:
        """The thing called `name`; UsageError with the nearest known name if there is none."""
        if name not in self._things and name in self._offers:
            self._offers[name]()
        if name not in self._things:
            raise UsageError(f"unknown {self.kind} '{name}'; {nearest(name, self.names())}")
        return self._things[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._things, *self._offers})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._things or name in self._offers
