"""The same video with its clips in another order, as a second batch for the losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from models.retrieval.parts.spans import centre_width, start_end
from models.retrieval.stages import View
from models.retrieval.types import Batch, Side, Targets

__all__ = ["MovedMoment", "ReversedVideo"]

_TEF = 2
"""Columns at the end of the video features that say where a clip is."""


class ReorderedVideo(View):
    """The clips of every sample in another order, with everything that belongs to a clip.

    Pseudo-events do not survive another order: there the samples have none. The features are a
    copy, as another video's are: no gradient goes through them to those of the batch.

    Args:
        places_stay: whether the TEF columns stay where they are, so that they tell the new place
            of a clip.
    """

    def __init__(self, *, places_stay: bool = True) -> None:
        super().__init__()
        self.places_stay = places_stay

    @abstractmethod
    def reorder(self, targets: Targets, mask: Tensor) -> tuple[Tensor, Targets]:
        """The order, and the moments in it.

        Args:
            targets: of the batch.
            mask: (B, L) bool.

        Returns:
            For every place the clip (B, L) int64 that comes there, padding unmoved, and the
            targets with `spans` and `span_mask` in that order.
        """

    def change(self, batch: Batch) -> Batch:
        """The other batch; the same one if it has no ground truth."""
        if batch.targets is None:
            return batch
        order, targets = self.reorder(batch.targets, batch.video_mask)
        before = batch.video.detach()
        video = _taken(before, order)
        if self.places_stay:
            video = torch.cat([video[..., :-_TEF], before[..., -_TEF:]], dim=-1)
        return replace(
            batch,
            video=video,
            side=_sides(batch.side, order),
            event_mask=None if batch.event_mask is None else batch.event_mask & False,
            targets=_clips_of(targets, order),
        )


def _taken(x: Tensor, order: Tensor) -> Tensor:
    """(B, L, d) with the clips in another order."""
    return x.gather(1, order.unsqueeze(-1).expand_as(x))


def _sides(sides: Mapping[str, Side], order: Tensor) -> dict[str, Side]:
    return {
        name: Side(_taken(each.x, order), each.mask.gather(1, order))
        for name, each in sides.items()
    }


def _clips_of(targets: Targets, order: Tensor) -> Targets:
    """Targets whose labels and pairs of clips followed their clips."""
    place = order.argsort(1)
    return replace(
        targets,
        saliency=targets.saliency.gather(1, order),
        in_moment=targets.in_moment.gather(1, order),
        positive=place.gather(1, targets.positive),
        negative=place.gather(1, targets.negative),
    )


class ReversedVideo(ReorderedVideo):
    """The video backwards: every moment is mirrored."""

    def reorder(self, targets: Targets, mask: Tensor) -> tuple[Tensor, Targets]:
        """See `ReorderedVideo.reorder`."""
        index = torch.arange(mask.shape[1], device=mask.device)
        order = torch.where(mask, mask.sum(1, keepdim=True) - 1 - index, index)
        centre, width = targets.spans.unbind(-1)
        return order, replace(targets, spans=torch.stack([1 - centre, width], dim=-1))


class MovedMoment(ReorderedVideo):
    """The moment at a random other place of its video (temporal shifting of BM-DETR).

    Samples with more or fewer than one moment, or without a clip outside, stay as they are.

    Args:
        released: as the public code: TEF columns travel with their clips, of several moments the
            first one moves and the others are forgotten, and the moved moment ends where its last
            clip begins, because the index of that clip is taken for the end.
    """

    def __init__(self, *, released: bool = False) -> None:
        super().__init__(places_stay=not released)
        self.released = released

    def reorder(self, targets: Targets, mask: Tensor) -> tuple[Tensor, Targets]:
        """See `ReorderedVideo.reorder`."""
        if not targets.spans.shape[1]:
            return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape), targets
        clips = mask.sum(1, keepdim=True)
        first, last = self._block(targets, clips)
        length = last - first + 1
        free = clips - length
        movable = (free > 0) & targets.span_mask[:, :1]
        if not self.released:
            movable = movable & (targets.span_mask.sum(1, keepdim=True) == 1)
        chance = torch.rand(first.shape, device=mask.device)
        # The public code never moves a moment to the very end.
        to = (chance * (free if self.released else free + 1)).long()
        to = torch.where(movable, to, first)
        if not self.released:
            move = torch.where(movable, to - first, 0) / clips
            spans = targets.spans + functional.pad(move, (0, 1)).unsqueeze(1)
            return _moved(first, length, to, mask), replace(targets, spans=spans)
        edges = torch.cat([to, to + length - 1], dim=1) / clips
        own = start_end(targets.spans[:, 0])
        spans = centre_width(torch.where(movable, edges, own)).unsqueeze(1)
        known = replace(targets, spans=spans, span_mask=targets.span_mask[:, :1])
        return _moved(first, length, to, mask), known

    def _block(self, targets: Targets, clips: Tensor) -> tuple[Tensor, Tensor]:
        """First and last clip (B, 1) of the first moment: all that it touches, or as released
        those before the clip in which it ends."""
        start, end = (start_end(targets.spans[:, :1]) * clips.unsqueeze(-1)).unbind(-1)
        close = 0 if self.released else 1e-3  # an edge between clips touches one of them only
        first = (start + close).floor().long()
        last = (end if self.released else (end - close).ceil()).long() - 1
        first = torch.minimum(first.clamp(min=0), clips - 1)
        return first, torch.maximum(torch.minimum(last, clips - 1), first)


def _moved(first: Tensor, length: Tensor, to: Tensor, mask: Tensor) -> Tensor:
    """The order (B, L) in which the block of `length` clips from `first` begins at `to`."""
    index = torch.arange(mask.shape[1], device=mask.device)
    rest = torch.where(index < to, index, index - length)
    rest = torch.where(rest < first, rest, rest + length)
    inside = (index >= to) & (index < to + length)
    return torch.where(mask, torch.where(inside, first + index - to, rest), index)
