"""Batches without a dataset, for tests, benchmarks and authors of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from models.retrieval.types import Batch, Side, Targets

__all__ = ["alone", "random_batch", "take"]


def random_batch(
    lengths: Sequence[int],
    words: Sequence[int],
    *,
    video_dim: int = 18,
    text_dim: int = 12,
    side_dims: Mapping[str, int] | None = None,
    text_dims: Mapping[str, int] | None = None,
    moments: int = 1,
    events: int = 3,
    seed: int = 0,
) -> Batch:
    """A batch in which queries can be answered: clips inside a moment resemble the query.

    Args:
        lengths: clips of each sample, at least 1.
        words: words of each sample's query; 0 is a query without words.
        video_dim: features of a clip, with the two TEF columns.
        text_dim: features of a word.
        side_dims: features of each side stream; they cover every clip but the first.
        text_dims: features of a word in each further embedding of the query, which has twice as
            many words there.
        moments: most moments of a sample; a sample of few clips has fewer.
        events: pseudo-events of each sample, which partition it; 0 for a batch without.
        seed: of everything.
    """
    rng = torch.Generator().manual_seed(seed)
    count, top = len(lengths), max(lengths)
    size = torch.tensor(lengths)[:, None]
    video_mask = torch.arange(top) < size
    text_mask = torch.arange(max(1, *words)) < torch.tensor(words)[:, None]
    spans, span_mask, in_moment = _moments(size, video_mask, moments, rng)

    topic = torch.randn(count, 1, text_dim, generator=rng)
    text = topic + 0.1 * torch.randn(*text_mask.shape, text_dim, generator=rng)
    seen = topic @ torch.randn(text_dim, video_dim - 2, generator=rng) / text_dim**0.5
    noise = torch.randn(count, top, video_dim - 2, generator=rng)
    edges = torch.stack([torch.arange(top), torch.arange(1, top + 1)], dim=-1) / size[..., None]
    video = torch.cat([seen * in_moment.unsqueeze(-1) + 0.3 * noise, edges], dim=-1)
    covered = video_mask & (torch.arange(top) > 0)
    side = {
        name: Side(torch.randn(count, top, width, generator=rng), covered)
        for name, width in (side_dims or {}).items()
    }
    targets = _targets(spans, span_mask, in_moment, video_mask, rng)
    partition = _partition(count, events, rng) if events else None
    texts = {name: _words(topic, words, width, rng) for name, width in (text_dims or {}).items()}
    return Batch(
        video=video * video_mask.unsqueeze(-1),
        video_mask=video_mask,
        text=text * text_mask.unsqueeze(-1),
        text_mask=text_mask,
        side=side,
        texts=texts,
        events=partition,
        event_mask=None if partition is None else torch.ones(count, events, dtype=torch.bool),
        video_ids=torch.arange(count),
        targets=targets,
    )


def take(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some samples of a batch, in the given order, padded as they were."""
    index = torch.tensor(rows)

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[index]
        if isinstance(value, Mapping):
            return {key: pick(each) for key, each in value.items()}
        if isinstance(value, Side | Targets):
            return replace(value, **{f.name: pick(getattr(value, f.name)) for f in fields(value)})
        return value

    return replace(batch, **{f.name: pick(getattr(batch, f.name)) for f in fields(batch)})


def alone(batch: Batch, row: int) -> Batch:
    """One sample of a batch without padding and without its ground truth."""
    one = take(batch, [row])
    clips = int(one.video_mask.sum())
    words = max(1, int(one.text_mask.sum()))
    return replace(
        one,
        video=one.video[:, :clips],
        video_mask=one.video_mask[:, :clips],
        text=one.text[:, :words],
        text_mask=one.text_mask[:, :words],
        side={key: _cut(each, clips) for key, each in one.side.items()},
        texts={key: _cut(each, max(1, int(each.mask.sum()))) for key, each in one.texts.items()},
        targets=None,
    )


def _cut(stream: Side, length: int) -> Side:
    return Side(stream.x[:, :length], stream.mask[:, :length])


def _words(topic: Tensor, words: Sequence[int], width: int, rng: torch.Generator) -> Side:
    """The queries, two words for each, in another embedding of their topics (B, 1, Dt)."""
    mask = torch.arange(2 * max(1, *words)) < 2 * torch.tensor(words)[:, None]
    same = topic @ torch.randn(topic.shape[-1], width, generator=rng)
    x = same + 0.1 * torch.randn(*mask.shape, width, generator=rng)
    return Side(x * mask.unsqueeze(-1), mask)


def _moments(
    size: Tensor, mask: Tensor, moments: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Spans (B, G, 2) in separate stretches of the video, their mask, and (B, L) inside or not."""
    room = torch.div(size, moments, rounding_mode="floor").clamp(min=1)
    first = torch.arange(moments) * room
    draw = torch.rand(2, len(size), moments, generator=rng)
    length = 1 + (draw[0] * (room - 1)).floor()
    start = first + (draw[1] * (room - length + 1)).floor()
    exists = start + length <= size
    edges = torch.stack([start, start + length], dim=-1) / size.unsqueeze(-1)
    spans = torch.stack([edges.mean(-1), edges[..., 1] - edges[..., 0]], dim=-1)
    clip = torch.arange(mask.shape[1])
    inside = (clip >= start.unsqueeze(-1)) & (clip < (start + length).unsqueeze(-1))
    return spans, exists, (inside & exists.unsqueeze(-1)).any(1) & mask


def _partition(count: int, events: int, rng: torch.Generator) -> Tensor:
    """(B, E, 3) of (start, end, depth): every sample cut at random places, in one split."""
    cuts = torch.rand(count, events - 1, generator=rng).sort(1).values
    edges = torch.cat([torch.zeros(count, 1), cuts, torch.ones(count, 1)], dim=1)
    return torch.stack([edges[:, :-1], edges[:, 1:], torch.zeros(count, events)], dim=-1)


def _targets(
    spans: Tensor, span_mask: Tensor, inside: Tensor, mask: Tensor, rng: torch.Generator
) -> Targets:
    """Labels 1 to 12 inside moments, and two pairs of clips where both sides exist."""
    labels = torch.randint(1, 13, inside.shape, generator=rng) * inside
    outside = mask & ~inside
    chance = torch.rand(inside.shape, generator=rng)
    positive = (chance * inside).topk(1).indices.expand(-1, 2)
    negative = (chance * outside).topk(1).indices.expand(-1, 2)
    both = (inside.any(1) & outside.any(1)).unsqueeze(1).expand(-1, 2)
    return Targets(
        spans=spans,
        span_mask=span_mask,
        saliency=labels.float(),
        positive=positive,
        negative=negative,
        pair_mask=both,
        in_moment=inside,
    )
