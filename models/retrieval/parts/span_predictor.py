"""Distributions over the first and the last clip of a moment, and the spans they give.

VSLNet's query-guided highlighting and conditioned span predictor (Zhang et al., ACL 2020, §3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.parts.context_query import Pointwise
from models.retrieval.parts.spans import centre_width

__all__ = ["BiLSTM", "ConditionedPredictor", "SpanPredictor", "masked_logits", "top_spans"]


class BiLSTM(nn.Module):
    """An LSTM from the front and one from each sequence's own end, mixed to the old width.

    The two run apart on the padded batch: packing would ask the CPU for the lengths. They run in
    float32 under autocast too.

    Args:
        width: features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(width, width, batch_first=True)
        self.back = nn.LSTM(width, width, batch_first=True)
        self.mix = Pointwise(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, d) from (B, N, d) and its (B, N) bool mask, real rows first; padded rows of the
        output hold numbers without meaning."""
        place = torch.arange(mask.shape[1], device=x.device).expand_as(mask)
        mirrored = torch.where(mask, mask.sum(1, keepdim=True) - 1 - place, place)
        index = mirrored.unsqueeze(-1).expand_as(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            ahead, _ = self.ahead(x)
            back, _ = self.back(x.gather(1, index))
        return self.mix(torch.cat([ahead, back.gather(1, index)], dim=-1))  # type: ignore[no-any-return]


class ConditionedPredictor(nn.Module):
    """Logits of the first clip, and of the last one given what the first was read from.

    Args:
        width: features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.start_states, self.end_states = BiLSTM(width), BiLSTM(width)
        self.start_mix, self.start = Pointwise(2 * width, width), Pointwise(width, 1)
        self.end_mix, self.end = Pointwise(2 * width, width), Pointwise(width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Two of (B, N) float32, very small at padding, from (B, N, d) and (B, N) bool."""
        starts = self.start_states(x, mask)
        ends = self.end_states(starts, mask)
        start = self.start(self.start_mix(torch.cat([starts, x], dim=-1)).relu())
        end = self.end(self.end_mix(torch.cat([ends, x], dim=-1)).relu())
        return masked_logits(start.squeeze(-1), mask), masked_logits(end.squeeze(-1), mask)


class SpanPredictor(nn.Module):
    """Highlighted features, and the conditioned predictor on them.

    Args:
        width: features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.highlight = Pointwise(width, 1)
        self.predictor = ConditionedPredictor(width)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of highlight, first and last clip, each (B, N) float32."""
        highlight = self.highlight(x).squeeze(-1).float()
        weight = torch.where(mask, highlight.sigmoid(), 0).unsqueeze(-1)
        return (highlight, *self.predictor(x * weight, mask))


def masked_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Float32 logits with the smallest number where the mask is False."""
    return logits.float().masked_fill(~mask, torch.finfo(torch.float32).min)


def top_spans(
    start: Tensor, end: Tensor, mask: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best spans of `p_start(i) · p_end(j)`, i ≤ j, best first.

    Place i of n begins at i/n and place j ends at (j + 1)/n, the public code's `index_to_time`.

    Args:
        start: (B, N) logits.
        end: (B, N) logits.
        mask: (B, N) bool.
        count: Q.

    Returns:
        `logits` (B, Q, 2) whose softmax has the score p_start · p_end at index 0, `spans`
        (B, Q, 2) as (centre, width) in [0, 1], and (B, Q) bool, spans that exist: a video of n
        places has n (n + 1) / 2. The others have a score of nearly 0 and the whole video.
    """
    size = mask.shape[1]
    first, last = start.log_softmax(-1), end.log_softmax(-1)
    ordered = torch.ones(size, size, dtype=torch.bool, device=mask.device).triu()
    exists = ordered & mask.unsqueeze(1) & mask.unsqueeze(2)
    low = torch.finfo(torch.float32).min
    scores = (first.unsqueeze(2) + last.unsqueeze(1)).masked_fill(~exists, low).flatten(1)
    scores = functional.pad(scores, (0, max(0, count - size * size)), value=low)
    best, index = scores.topk(count, dim=1)
    real = best > low
    i = torch.div(index, size, rounding_mode="floor")
    edges = torch.stack([i, index % size + 1], dim=-1) / mask.sum(1).clamp(min=1)[:, None, None]
    centre, width = centre_width(edges).unbind(-1)
    spans = torch.stack([torch.where(real, centre, 0.5), torch.where(real, width, 1.0)], dim=-1)
    log_p = torch.where(real, best, _LOW).clamp(_LOW, -_TINY)
    return torch.stack([log_p, torch.log(-torch.expm1(log_p))], dim=-1), spans, real


_LOW, _TINY = -80.0, 1e-7
