"""What the two console programs have in common: how they are declared, and how errors are told."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer

from data.errors import StorylineError, UsageError, how_to_install
from data.terminal import say, shortened

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_KILLED",
    "EXIT_QUARANTINE",
    "EXIT_USAGE",
    "EXIT_WRONG",
    "program",
    "reported",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_QUARANTINE = 3
"""Finished, some inputs are in quarantine."""
EXIT_WRONG = 4
"""Something in a store is wrong."""
EXIT_KILLED = 130
"""A second Ctrl-C, or one where nothing had to be saved."""
EXIT_INTERRUPTED = 75
"""Interrupted; the same command continues (EX_TEMPFAIL of sysexits.h)."""

F = TypeVar("F", bound=Callable[..., None])


def program(name: str, purpose: str) -> typer.Typer:
    """An empty program; commands are added with `@app.command()`."""
    return typer.Typer(
        name=name,
        help=purpose,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def reported(
    name: str, exit_codes: Mapping[type[StorylineError], int] | None = None
) -> Callable[[F], F]:
    """Decorator: errors meant for the user become one sentence on stderr and an exit code.

    So does a package that is not installed: each program may be installed without the other's.

    Args:
        name: of the program and of the extra that installs it; in front of the sentence.
        exit_codes: of errors beside UsageError; all others end with `EXIT_FAILED`.
    """
    codes: dict[type[StorylineError], int] = {UsageError: EXIT_USAGE}
    codes |= exit_codes or {}

    def wrap(command: F) -> F:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> None:
            try:
                command(*args, **kwargs)
            except StorylineError as error:
                say(shortened(f"{name}: {error}"), err=True)
                found = (code for kind, code in codes.items() if isinstance(error, kind))
                raise typer.Exit(next(found, EXIT_FAILED)) from None
            except ModuleNotFoundError as error:
                package = (error.name or "").partition(".")[0]
                if importlib.util.find_spec(package or "sys") is not None:
                    raise
                told = f"this needs the Python package '{package}', which is not installed"
                say(f"{name}: {told}: {how_to_install(name)}", err=True)
                raise typer.Exit(EXIT_USAGE) from None
            except KeyboardInterrupt:
                say(f"{name}: interrupted at once; nothing more was saved", err=True)
                raise typer.Exit(EXIT_KILLED) from None

        return wrapped  # type: ignore[return-value]

    return wrap
