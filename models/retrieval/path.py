"""Whether parts fit along the path, and states of several passes as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from data.errors import UsageError
from models.retrieval.flow import Memory, Tokens
from models.retrieval.stages import LossTerm, Parts, Pass
from models.retrieval.types import Batch, Side

__all__ = [
    "cat_samples",
    "check_path",
    "check_widths",
    "in_precision",
    "passes_read",
    "split_samples",
]


def check_path(parts: Parts, carried: Sequence[str] = ()) -> None:
    """Refuse parts that do not fit, with the reason.

    Args:
        parts: the parts of a model.
        carried: what batches will carry beside video and text, as parts ask for it: `side.<name>`
            for a side stream, `text.<name>` for another embedding of the query. Pseudo-events
            (`events`) are taken for granted here: a model is built without knowing of them, and who
            makes its batches looks at `RetrievalModel.reads`.

    Raises:
        UsageError: a part requires what no part before it provides.
    """
    given = dict.fromkeys((*carried, "events"), "the batch")
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


def check_widths(
    batch: Batch,
    video_dim: int,
    text_dim: int,
    side_dims: Mapping[str, int] | None = None,
    text_dims: Mapping[str, int] | None = None,
) -> None:
    """Refuse features of another width than the model was built for.

    Args:
        batch: for the model.
        video_dim: features of a clip, with the two TEF columns.
        text_dim: features of a word; not asked of word ids.
        side_dims: features of each side stream.
        text_dims: features of a word in each further embedding of the query.

    Raises:
        UsageError: the last axis of one of them has another length.
    """
    widths = [("clip", "video_dim", batch.video, video_dim)]
    if batch.text.is_floating_point():
        widths.append(("word", "text_dim", batch.text, text_dim))
    for what, name, streams, dims in (
        ("clip", "side_dims", batch.side, side_dims or {}),
        ("word", "text_dims", batch.texts, text_dims or {}),
        ("word", "text_dims", batch.wrong_texts, text_dims or {}),
    ):
        shared = streams.keys() & dims.keys()
        widths += [(what, f"{name}['{key}']", streams[key].x, dims[key]) for key in sorted(shared)]
    for what, name, x, expected in widths:
        if x.shape[-1] != expected:
            raise UsageError(
                f"the batch has {x.shape[-1]} features a {what} and the model was built with "
                f"{name}={expected}; give it the features that it was built for, of clips with the "
                "two columns of their place (TEF) at the end, or build it for these"
            )


def in_precision(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with features in the type of the weights.

    Narrower features, float16 as a store holds them, are widened, which changes no number; under
    autocast as well, which narrows them again where it pays.

    Args:
        batch: for the model.
        dtype: of its weights.

    Raises:
        UsageError: features of another type, which would lose digits; it names them.
    """
    given = dict(_features(batch))
    if all(x.dtype == dtype for x in given.values()):
        return batch
    for name, x in given.items():
        ids = name in ("text", "wrong_text") and x.dtype in (torch.int32, torch.int64)
        if not ids and x.dtype not in _exact_in(dtype):
            raise UsageError(
                f"Batch.{name} is {_name(x.dtype)} and the weights of the model are "
                f"{_name(dtype)}; convert it with .to(torch.{_name(dtype)}). For speed leave both "
                "in float32 and run the model under torch.autocast"
            )

    def widened(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    def streams(given: Mapping[str, Side]) -> dict[str, Side]:
        return {name: replace(each, x=widened(each.x)) for name, each in given.items()}

    return replace(
        batch,
        video=widened(batch.video),
        text=widened(batch.text),
        wrong_text=None if batch.wrong_text is None else widened(batch.wrong_text),
        side=streams(batch.side),
        texts=streams(batch.texts),
        wrong_texts=streams(batch.wrong_texts),
    )


def _features(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    for name in ("video", "text", "wrong_text"):
        x = getattr(batch, name)
        if x is not None:
            yield name, x
    for name in ("side", "texts", "wrong_texts"):
        for key, stream in getattr(batch, name).items():
            yield f"{name}['{key}'].x", stream.x


def _exact_in(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Floating types all of whose numbers a type has."""
    narrower = (torch.float16, torch.bfloat16, torch.float32)
    wide = {torch.float32: narrower, torch.float64: (*narrower, torch.float64)}
    return wide.get(dtype, (dtype,))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
