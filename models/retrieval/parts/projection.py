"""From features to the model's width, and the sine codes of clips and anchors."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from data.errors import UsageError

__all__ = ["MLP", "AnchorSine", "FeatureProjection", "LearnedTextPosition", "clip_position"]


class FeatureProjection(nn.Module):
    """Layers of LayerNorm, dropout, Linear, ReLU; one of them, usually the last, without the ReLU.

    `LinearLayer` × depth of the Moment-DETR lineage (specs/retrieval_models.md §3.0).

    Args:
        inputs: features that come in.
        outputs: features that go out.
        depth: layers.
        dropout: before every Linear.
        plain: zero-based number of the layer without a ReLU; None for the last.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        depth: int = 2,
        dropout: float = 0.5,
        plain: int | None = None,
    ) -> None:
        super().__init__()
        self.plain = depth - 1 if plain is None else plain
        widths = [inputs] + [outputs] * (depth - 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.linears = nn.ModuleList(nn.Linear(width, outputs) for width in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) as (…, outputs)."""
        for i, (norm, linear) in enumerate(zip(self.norms, self.linears, strict=True)):
            x = linear(self.dropout(norm(x)))
            x = x if i == self.plain else x.relu()
        return x


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        inputs: features that come in.
        hidden: features between layers.
        outputs: features that go out.
        depth: layers.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * (depth - 1) + [outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) as (…, outputs)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)  # type: ignore[no-any-return]


def _sine(angle: Tensor, width: int) -> Tensor:
    """(…) angles as (…, width): sine on even, cosine on odd features, wavelengths 2π to 2π·1e4."""
    index = torch.arange(width, device=angle.device, dtype=angle.dtype)
    phase = angle.unsqueeze(-1) / 10000 ** (2 * (index // 2) / width)
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


def clip_position(mask: Tensor, width: int) -> Tensor:
    """Sine code of the clips' places in their own video.

    The last real clip of every video is at 2π, so the code does not depend on padding.

    Args:
        mask: (B, L) bool.
        width: features, even.

    Returns:
        (B, L, width) float32; padded clips carry the code of the last real one.
    """
    place = mask.cumsum(1, dtype=torch.float32)
    return _sine(place / (place[:, -1:] + 1e-6) * (2 * math.pi), width)


class AnchorSine(nn.Module):
    """Sine code of (centre, width) anchors, half of the features each, no parameters.

    The public code has 128 features per coordinate built in; this is width / 2, which is the
    same at the published width of 256 (specs/retrieval_models.md §10.2).

    Args:
        width: features, a multiple of 4.
        width_first: whether the code of the width comes first (BM-DETR).
    """

    def __init__(self, width: int, *, width_first: bool = False) -> None:
        super().__init__()
        self.width, self.width_first = width, width_first

    def forward(self, anchors: Tensor) -> Tensor:
        """(…, 2) in [0, 1] as (…, width)."""
        anchors = anchors.flip(-1) if self.width_first else anchors
        return _sine(anchors * (2 * math.pi), self.width // 2).flatten(-2)


class LearnedTextPosition(nn.Module):
    """Learned word places (`use_txt_pos` of the public code).

    Args:
        length: most words.
        width: features.
        dropout: after the norm.
    """

    def __init__(self, length: int, width: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor) -> Tensor:
        """(B, T, width) code for (B, T, width) words; the code reads the words, as released.

        Raises:
            UsageError: more words than the table has places.
        """
        words, places = text.shape[1], self.table.num_embeddings
        if words > places:
            raise UsageError(
                f"a query has {words} words and the model's table of places {places}; "
                "build the model with more max_words or cut the queries"
            )
        return self.dropout(self.norm(text + self.table.weight[:words]))  # type: ignore[no-any-return]
