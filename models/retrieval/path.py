"""Whether parts fit along the path, and states of several passes as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from data.errors import UsageError
from models.retrieval.stages import LossTerm, Memory, Parts, Pass, Tokens

__all__ = ["cat_samples", "check_path", "passes_read", "split_samples"]


def check_path(parts: Parts, sides: Sequence[str] = ()) -> None:
    """Refuse parts that do not fit, with the reason.

    Args:
        parts: the parts of a model.
        sides: names of the side streams that batches will carry; a part asks for one as
            `side.<name>`. Pseudo-events (`events`) are taken for granted here: a model is built
            without knowing of them, and who makes its batches looks at `RetrievalModel.reads`.

    Raises:
        UsageError: a part requires what no part before it provides.
    """
    given = {f"side.{name}": "the batch" for name in sides} | {"events": "the batch"}
    for stage, part in parts.in_order():
        name = type(part).__name__
        for need in sorted(part.requires - given.keys()):
            have = ", ".join(f"{key} ({by})" for key, by in sorted(given.items())) or "nothing"
            raise UsageError(
                f"{stage} {name} needs '{need}', and no part before it provides that; "
                f"provided so far: {have}. Choose an earlier part that provides '{need}', "
                f"or a {stage} that does without"
            )
        given.update(dict.fromkeys(part.provides, name))
    missing = {"logits", "spans", "saliency"} - given.keys()
    if missing:
        raise UsageError(
            f"the heads must give logits, spans and saliency; nothing here gives "
            f"{', '.join(sorted(missing))}. Add a head that does"
        )


def passes_read(parts: Parts, counted: Iterable[LossTerm]) -> tuple[Pass, ...]:
    """The passes of which a head or a loss reads something; the others need not run.

    Args:
        parts: the parts of a model.
        counted: its losses that count.
    """
    readers = (*parts.heads, *counted)
    read = frozenset[str]().union(*(each.requires | each.uses for each in readers))
    return tuple(each for each in parts.passes if each.provides & read)


State = TypeVar("State", Tokens, Memory)


def cat_samples(states: Sequence[State]) -> State:
    """Several states of equal lengths as one with the samples of all."""
    joint: State = _cat(states)
    return joint


def split_samples(state: State, count: int) -> list[State]:
    """The inverse of `cat_samples` for `count` states of equal batch size."""
    return list(_split(state, count))


def _cat(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    if values[0] is None:
        return None
    if is_dataclass(values[0]):
        names = [f.name for f in fields(values[0])]
        found = {name: _cat([getattr(each, name) for each in values]) for name in names}
        return replace(values[0], **found)  # type: ignore[type-var]
    return {key: torch.cat([each[key] for each in values]) for key in values[0]}


def _split(value: Any, count: int) -> Sequence[Any]:
    if isinstance(value, Tensor):
        return value.chunk(count)
    if value is None:
        return [None] * count
    if is_dataclass(value):
        pieces = {f.name: _split(getattr(value, f.name), count) for f in fields(value)}
        return [
            replace(value, **{name: piece[i] for name, piece in pieces.items()})  # type: ignore[type-var]
            for i in range(count)
        ]
    chunks = {key: each.chunk(count) for key, each in value.items()}
    return [{key: chunk[i] for key, chunk in chunks.items()} for i in range(count)]
