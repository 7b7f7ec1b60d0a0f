"""Saliency from the best moment that was found (TR-DETR's MR2HD, LD-DETR's HD head)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from models.retrieval.flow import Decoded, Memory
from models.retrieval.parts.spans import start_end
from models.retrieval.stages import Head

__all__ = ["MomentGRUSaliency", "SummedLinear", "moment_slice"]


class SummedLinear(nn.Linear):
    """A linear layer whose outputs are summed and scaled: `s = Σ_d (W x + b)_d · scale`.

    The public codes compute all outputs and sum them; that is the same as one dot product with
    the sum of the rows of W, which is what is done here.

    Args:
        width: features in, and outputs that are summed.
        scale: `root` divides by √d, as the public codes; `width` by d (LD-DETR, Eq. 38).
    """

    def __init__(self, width: int, scale: Literal["root", "width"] = "root") -> None:
        super().__init__(width, width)
        self.scale = 1 / (math.sqrt(width) if scale == "root" else width)

    def direction(self) -> tuple[Tensor, Tensor]:
        """The summed map as weight (d,) and bias ()."""
        return self.weight.float().sum(0) * self.scale, self.bias.float().sum() * self.scale

    def forward(self, input: Tensor) -> Tensor:
        """(…, d) as (…) float32."""
        weight, bias = self.direction()
        return (input.float() * weight).sum(-1) + bias


class MomentGRUSaliency(Head):
    """Clips that resemble the best moment are salient.

    A GRU reads the clips of the moment with the highest foreground probability; the dot product
    `w` of its last state with every clip, as the encoders gave it, weighs the memory:
    `s = Σ_d Lin(R ∘ w + R)` (LD-DETR, Eq. 34–38).

    Args:
        width: features.
        moment: `masked` reads the clips of the moment, cut to the real ones, and takes the state
            after the last of them. `released` scales the span by the padded length, slices from
            the end where it begins before 0, and takes the state after the zeros that follow it,
            so that it depends on the padding.
        reads: the clips as the encoders gave them, or as the memory has them.
        score: the map from a clip to a number; None takes one that the fuser shares, as
            `saliency_weight` (B, d) and `saliency_bias` (B,) in the memory's extras.
    """

    provides = frozenset({"saliency"})

    def __init__(
        self,
        width: int,
        *,
        moment: Literal["masked", "released"] = "masked",
        reads: Literal["encoded", "memory"] = "encoded",
        score: SummedLinear | None = None,
    ) -> None:
        super().__init__()
        shared = {"saliency_weight"} if score is None else set()
        self.requires = frozenset({"video", "clip", "logits", "spans"} | shared)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.score = score
        self.moment: Literal["masked", "released"] = moment
        self.reads = reads

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`saliency` (B, L) float32, unbounded."""
        video = memory.tokens.video.float()
        source = memory.clip.float() if self.reads == "memory" else video
        best = found["logits"][-1].float().softmax(-1)[..., 0].argmax(1)
        span = found["spans"][-1].float()[torch.arange(len(best), device=best.device), best]
        state = self._read(source, *moment_slice(span, memory.clip_mask, self.moment))
        resemblance = (video * state.unsqueeze(1)).sum(-1)
        weight, bias = self._score(memory)
        score = (memory.clip.float() * weight.unsqueeze(-2)).sum(-1)
        return {"saliency": (1 + resemblance) * score + bias.unsqueeze(-1)}

    def _score(self, memory: Memory) -> tuple[Tensor, Tensor]:
        if self.score is not None:
            return self.score.direction()
        return memory.extras["saliency_weight"], memory.extras["saliency_bias"]

    def _read(self, video: Tensor, start: Tensor, count: Tensor) -> Tensor:
        """(B, d) state after `count` clips from `start` (or after all that follows, as released),
        in float32: autocast has no rule for a GRU on every device."""
        clips = video.shape[1]
        step = torch.arange(clips, device=video.device)
        place = (start.unsqueeze(1) + step).clamp(max=clips - 1)
        part = video.gather(1, place.unsqueeze(-1).expand_as(video))
        part = part * (step < count.unsqueeze(1)).unsqueeze(-1)
        with torch.autocast(video.device.type, enabled=False):
            states, last = self.gru(part)
        if self.moment == "released":
            return last[-1]  # type: ignore[no-any-return]
        end = (count - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
        return states.gather(1, end).squeeze(1)  # type: ignore[no-any-return]


def moment_slice(
    span: Tensor, mask: Tensor, how: Literal["masked", "released"]
) -> tuple[Tensor, Tensor]:
    """First clip of a moment and how many clips it has.

    Args:
        span: (B, 2) of (centre, width).
        mask: (B, L) bool, real clips.
        how: as `MomentGRUSaliency`; `masked` gives at least one clip, `released` may give none.

    Returns:
        Two of (B,) int64.
    """
    edges = start_end(span)
    if how == "masked":
        clips = mask.sum(1).clamp(min=1)
        first, last = (edges * clips.unsqueeze(1)).floor().long().unbind(1)
        first = torch.minimum(first.clamp(min=0), clips - 1)
        return first, torch.minimum(torch.maximum(last, first), clips - 1) - first + 1
    clips = torch.full_like(mask[:, 0], mask.shape[1], dtype=torch.int64)
    first, last = (edges * mask.shape[1]).floor().long().unbind(1)
    first = torch.where(first < 0, first + clips, first).clamp(min=0)
    return first, (torch.minimum(last + 1, clips) - first).clamp(min=0)
