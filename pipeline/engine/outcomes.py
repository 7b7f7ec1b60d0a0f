"""How what a stage raised becomes the outcome of a unit, or the end of a worker."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from typing import Any, Literal

from data.errors import EngineDiedError, InputError, UsageError
from data.store import ItemKey
from pipeline.engine.types import Outcome, StageSetupError, UpstreamError
from pipeline.stage import Item

__all__ = ["attempt", "changed", "outcome_of", "raise_if_nobodys", "setup_sentence"]

_LOG_CHARACTERS = 4000

# InputErrors that another attempt may cure: the decoder's child process died or hung.
_WORTH_ANOTHER_TRY = frozenset({"decoder-crashed", "decoder-timeout"})

_SICK_GPU = "CUDA error:"
"""How torch's message begins after which every call of this process fails (an illegal access, a
device-side assert). Memory that does not suffice is told in other words, and can be tried again."""


def attempt(work: Callable[..., Any], *args: Any) -> Any:
    """The result of `work`, or the exception that it raised."""
    try:
        return work(*args)
    except Exception as error:
        return error


def raise_if_nobodys(stage: str, error: Exception) -> None:
    """Raise what no input is at fault for.

    Raises:
        StageSetupError: what the user asked of a stage cannot be had.
        EngineDiedError: what computes is lost, the worker with it.
    """
    if isinstance(error, UsageError):
        raise StageSetupError(stage, setup_sentence(stage, error)) from error
    if isinstance(error, EngineDiedError):
        raise error
    if isinstance(error, RuntimeError) and str(error).startswith(_SICK_GPU):
        raise EngineDiedError(f"stage '{stage}': {str(error).splitlines()[0]}") from error


def changed(stage: str, item: Item) -> Outcome:
    """The file of an item is not the one that it was."""
    path = item.video.path if item.video is not None else item.key.id
    message = f"{path} was replaced while it was worked on; nothing was stored of it"
    return Outcome(stage, item.key, "changed", message=message)


def outcome_of(stage: str, key: ItemKey, error: Exception) -> Outcome:
    """How a unit ended whose stage or decoder raised."""
    if isinstance(error, UpstreamError):
        return Outcome(stage, key, "unread", message=str(error), shard=error.shard)
    if isinstance(error, InputError):
        status: Literal["error", "refused"]
        status = "error" if error.reason in _WORTH_ANOTHER_TRY else "refused"
        where = f" (on {socket.gethostname()})" if error.reason == "missing" else ""
        return Outcome(stage, key, status, error.reason, str(error)[:_LOG_CHARACTERS] + where)
    # Cut here: a text of megabytes must not travel.
    log = "".join(traceback.format_exception(error))[-_LOG_CHARACTERS:]
    message = f"{type(error).__name__}: {error}"[:_LOG_CHARACTERS]
    return Outcome(stage, key, "error", "exception", message, log)


def setup_sentence(stage: str, error: Exception) -> str:
    """The sentence for a stage that cannot run at all."""
    name = "" if str(error) and type(error).__module__ == "data.errors" else type(error).__name__
    return f"stage '{stage}' cannot run: {name}{': ' if name else ''}{error}"
