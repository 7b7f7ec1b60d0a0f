"""The errors that reach a user. Each message says what was wrong, what was given, what is allowed
and what to do next.

StorylineError
├── UsageError      wrong command, option, configuration or annotation file     exit code 2
├── StoreError      a store or shard that cannot be trusted or read             exit code 1
│   ├── DamageError   bytes of a shard that are not what was written
│   └── GoneError     a shard that is not there any more (compact, gc, repair)
├── InputError      one input (video, query) that cannot be processed           quarantine
└── EngineDiedError   what computes (a GPU, a server's engine) is lost          another worker
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "DamageError",
    "EngineDiedError",
    "GoneError",
    "InputError",
    "StoreError",
    "StorylineError",
    "UsageError",
    "how_to_install",
    "nearest",
    "some",
]


class StorylineError(Exception):
    """Base of every error that Storyline raises on purpose."""


class UsageError(StorylineError):
    """The user asked for something that cannot be done; nothing was started."""


class StoreError(StorylineError):
    """A store, shard or recipe that cannot be read or trusted."""


class DamageError(StoreError):
    """A shard whose bytes are not what was written: torn, truncated, flipped, or a stranger's.

    Args:
        shard: place of the file, as text.
        problem: what is wrong with it, in half a sentence.
    """

    def __init__(self, shard: str, problem: str) -> None:
        super().__init__(
            f"shard {shard} {problem}; no wrong row was used. `pipeline repair` sets the file "
            "aside and keeps what is whole in it, then `pipeline run` makes the rest again"
        )
        self.shard = shard
        self.problem = problem

    def __reduce__(self) -> tuple[type[DamageError], tuple[str, str]]:
        return type(self), (self.shard, self.problem)


class GoneError(StoreError):
    """A shard that was there when its folder was listed, and is not there now."""


class InputError(StorylineError):
    """One input cannot be processed; it goes to quarantine and stops nothing else.

    Args:
        reason: short machine-readable code, e.g. `no-video-stream`, `undecodable`.
        message: a sentence for a person.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class EngineDiedError(StorylineError):
    """What computes cannot be used any more by this process: a CUDA context after an illegal
    access, the process of an inference engine. No input is charged for it at once: the worker is
    replaced, and what it had in hand is tried again one by one.
    """


def how_to_install(extra: str) -> str:
    """The command that installs the packages of an extra (`pipeline`, `trainer`, `s3`, `gs`).

    Without the constraints pip may replace torch by a newer CUDA build (constraints.txt). By its
    name alone the distribution would be looked for in a registry, where anybody may put one.
    """
    return f"pip install -c constraints.txt '.[{extra}]' in a checkout"


_ALL_NAMED = 40
"""So many allowed words are named; of more (models of open_clip) the likeliest."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """A half sentence that names the nearest allowed word and all of them, if they are not many."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(given, allowed, n=10, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    if len(allowed) <= _ALL_NAMED:
        return f"{hint}allowed: {', '.join(allowed) or 'nothing'}"
    named = close or allowed[:10]
    return f"{hint}allowed: {', '.join(named)} and {len(allowed) - len(named):,} more"


def some(names: Sequence[str], most: int = 10) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
