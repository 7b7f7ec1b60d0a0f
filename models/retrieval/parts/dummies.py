"""Adaptive cross-attention (CG-DETR): dummies that take the attention no word deserves, and the
saliency token made of prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.retrieval.flow import Decoded, Memory, Tokens
from models.retrieval.parts.attention import (
    DropPath,
    EncoderLayer,
    FeedForward,
    keys_allowed,
    xavier,
)
from models.retrieval.stages import Fuser, Head, Refiner

__all__ = [
    "AdaptiveCrossAttention",
    "AdaptiveFuser",
    "AdaptiveLayer",
    "AddGlobal",
    "LeadingTokens",
    "WordAttention",
]

_NO_DIRECTION = 1e-4
"""Length below which what tells a clip from the mean is rounding."""


class LeadingTokens(nn.Module):
    """Learned tokens that read a sequence, and are read by it.

    Args:
        width: features.
        heads: attention heads.
        hidden: features inside the feed-forwards.
        layers: encoder layers.
        dropout: in attention and feed-forward; of the branches as `DropPath`.
        count: learned tokens; None is one, kept as a vector.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        layers: int,
        dropout: float,
        count: int | None = None,
    ) -> None:
        super().__init__()
        shape = (width,) if count is None else (count, width)
        self.token = nn.Parameter(torch.randn(shape))
        self.token_pos = nn.Parameter(torch.randn(shape))
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, hidden, dropout, drop_path=dropout) for _ in range(layers)
        )

    def forward(self, rows: Tensor, pos: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The learned tokens (B, n, d) and the rows (B, N, d) after they have read each other.

        Args:
            rows: (B, N, d).
            pos: (B, N, d).
            mask: (B, N) bool.
        """
        tokens, places = self.learned(len(rows))
        count = tokens.shape[1]
        x, pos = torch.cat([tokens, rows], dim=1), torch.cat([places, pos], dim=1)
        mask = functional.pad(mask, (count, 0), value=True)
        for layer in self.layers:
            x = layer(x, pos, mask)
        return x[:, :count], x[:, count:]

    def learned(self, count: int) -> tuple[Tensor, Tensor]:
        """The tokens and their places, (count, n, d) each."""
        width = self.token.shape[-1]
        token, place = (
            x.view(-1, width).expand(count, -1, -1) for x in (self.token, self.token_pos)
        )
        return token, place


class AdaptiveCrossAttention(nn.Module):
    """Attention over dummies and words of which only the words' part is taken (CG-DETR §3.2).

    There are no projections of queries, keys and values, as in the public code.

    Args:
        width: features.
        heads: heads.
        dropout: on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, dummies: int
    ) -> tuple[Tensor, Tensor]:
        """What the words give (B, N, d), and the mean attention of the heads (B, N, n + T).

        Args:
            query: (B, N, d).
            key: (B, n + T, d), dummies first.
            value: (B, n + T, d).
            allowed: bool, (B, n + T) or (B, heads, N, n + T).
            dummies: n.
        """
        q, k, v = (
            x.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (query, key, value)
        )
        mask = allowed[:, None, None] if allowed.dim() == 2 else allowed
        score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        # Padding gets no attention even where there is nothing else to look at.
        weight = score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(-1) * mask
        out = self.dropout(weight)[..., dummies:] @ v[..., dummies:, :]
        return self.bare(out.transpose(1, 2).flatten(-2)), weight.mean(1)

    def bare(self, found: Tensor) -> Tensor:
        """(B, N, d) what the heads found, as the output."""
        return self.out_proj(found)  # type: ignore[no-any-return]


class AdaptiveLayer(nn.Module):
    """Adaptive cross-attention and feed-forward, wired as a `TextToVideoLayer`.

    Args:
        width: features.
        heads: attention heads.
        hidden: features inside the feed-forward.
        dropout: on attention weights and inside the feed-forward; of the branches as `DropPath`.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = AdaptiveCrossAttention(width, heads, dropout)
        self.feedforward = FeedForward(width, hidden, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.branch = DropPath(dropout)

    def forward(
        self, rows: Tensor, pos: Tensor, key: Tensor, value: Tensor, allowed: Tensor, dummies: int
    ) -> tuple[Tensor, Tensor]:
        """Rows (B, N, d) and attention (B, N, n + T); arguments as `AdaptiveCrossAttention`."""
        found, weight = self.attention(rows + pos, key, value, allowed, dummies)
        return self.settle(rows, found), weight

    def settle(self, rows: Tensor, found: Tensor) -> Tensor:
        """(B, N, d): the rows with what the attention found, through the feed-forward.

        The feed-forward's residual adds the un-normalised input of the norm before it.
        """
        rows = rows + self.branch(found)
        return self.norm2(  # type: ignore[no-any-return]
            rows + self.branch(self.feedforward(self.norm1(rows)))
        )

    def without_keys(self, rows: Tensor) -> Tensor:
        """(B, N, d): the rows after an attention that has nothing to look at."""
        return self.settle(rows, self.attention.bare(torch.zeros_like(rows)))


class AdaptiveFuser(Fuser):
    """Clips read words past the dummies, then each other together with a saliency token.

    Args:
        width: features.
        heads: attention heads.
        hidden: features inside the feed-forwards.
        t2v_layers: layers of adaptive cross-attention.
        layers: layers over clips and saliency token.
        dropout: everywhere.
        dummies: the dummies, which read the words.
        prompts: prompts that the saliency token is made of.
        chosen: how many of them each sample takes.
        mask: which words a clip may read, see `keys_allowed`.
        token_attends_text: whether the saliency token reads the words.
    """

    provides = frozenset(
        {"clip", "kv", "global_token", "dummies", "dummy_places", "prompts", "word_attention"}
    )

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        t2v_layers: int,
        layers: int,
        dropout: float,
        dummies: LeadingTokens,
        prompts: int,
        chosen: int,
        mask: Literal["words", "released"],
        token_attends_text: bool,
    ) -> None:
        super().__init__()
        shape = (width, heads, hidden, dropout)
        self.t2v = nn.ModuleList(AdaptiveLayer(*shape) for _ in range(t2v_layers))
        self.layers = nn.ModuleList(EncoderLayer(*shape, drop_path=dropout) for _ in range(layers))
        xavier(self)
        self.dummies = dummies
        self.prompts = nn.Parameter(torch.randn(prompts, width))
        self.token_pos = nn.Parameter(torch.randn(1, width))
        self.heads, self.chosen, self.mask = heads, chosen, mask
        self.token_attends_text = token_attends_text
        self.mixes_samples = mask == "released"

    def forward(self, tokens: Tokens) -> Memory:
        """Memory on the clip axis; the saliency token is its `global_token`.

        Its extras are `dummies` (B, n, d) after they read the words, `dummy_places` (B, n, d),
        `prompts` (B, P, d), and `word_attention` (B, L, n + T), the mean over layers and heads,
        dummies first.
        """
        places = tokens.extras.get("own_places", tokens.text_pos)
        dummies, _ = self.dummies(tokens.text, places, tokens.text_mask)
        clips, attention = self._read_words(tokens, dummies)
        token = self._saliency_token(tokens, attention[..., dummies.shape[1] :])
        token_pos = self.token_pos.expand(len(clips), 1, -1)
        x = torch.cat([token, clips], dim=1)
        pos = torch.cat([token_pos, tokens.video_pos], dim=1)
        mask = functional.pad(tokens.video_mask, (1, 0), value=True)
        for layer in self.layers:
            x = layer(x, pos, mask)
        clips, keep, place = x[:, 1:], tokens.video_mask, tokens.video_pos
        extras = {
            "dummies": dummies,
            "dummy_places": self.dummies.learned(len(clips))[1],
            "prompts": self.prompts.expand(len(clips), -1, -1),
            "word_attention": attention,
        }
        return Memory(clips, keep, place, clips, keep, place, global_token=x[:, 0], extras=extras)

    def _read_words(self, tokens: Tokens, dummies: Tensor) -> tuple[Tensor, Tensor]:
        """Clips (B, L, d) after the layers, and their mean attention (B, L, n + T)."""
        count = dummies.shape[1]
        value = torch.cat([dummies, tokens.text], dim=1)
        dummy_pos = self.dummies.learned(len(value))[1]
        key = value + torch.cat([dummy_pos, tokens.text_pos], dim=1)
        allowed = keys_allowed(
            tokens.video_mask,
            functional.pad(tokens.text_mask, (count, 0), value=True),
            heads=self.heads,
            mask="keys" if self.mask == "words" else "released",
            present=tokens.extras.get("negative_mask"),
        )
        clips, weights = tokens.video, []
        for layer in self.t2v:
            clips, weight = layer(clips, tokens.video_pos, key, value, allowed, count)
            weights.append(weight)
        return clips, torch.stack(weights).mean(0)

    def _saliency_token(self, tokens: Tokens, attention: Tensor) -> Tensor:
        """(B, 1, d): the mean clip and the prompts that fit the clips which read the words.

        Args:
            tokens: of the encoders.
            attention: (B, L, T) to words.
        """
        real = tokens.video_mask.unsqueeze(-1)
        video = torch.where(real, tokens.video, 0)
        context = (video.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)).detach()
        apart = tokens.video - context
        # The only clip of a video is its own mean: no direction, and a gradient of 1e12.
        apart = apart.masked_fill(apart.detach().norm(dim=-1, keepdim=True) < _NO_DIRECTION, 0)
        likeness = (
            functional.normalize(apart, dim=-1) @ functional.normalize(self.prompts, dim=-1).T
        ).softmax(-1)
        importance = (attention.detach().sum(-1) * tokens.video_mask).unsqueeze(1)
        share = importance / importance.sum(-1, keepdim=True).clamp(min=1e-12)
        best, index = (share @ likeness).squeeze(1).topk(self.chosen)
        token = context + (best.unsqueeze(-1) * self.prompts[index]).sum(1, keepdim=True)
        return self._token_through_layers(token, tokens)

    def _token_through_layers(self, token: Tensor, tokens: Tokens) -> Tensor:
        """(B, 1, d) after the layers of the clips, with the words alone or with no key at all."""
        layers = cast("Iterable[AdaptiveLayer]", self.t2v)
        for layer in layers:
            if self.token_attends_text:
                key = tokens.text + tokens.text_pos
                token, _ = layer(token, self.token_pos, key, tokens.text, tokens.text_mask, 0)
            else:
                token = layer.without_keys(token)
        return token


class AddGlobal(Refiner):
    """Adds the global token to every clip."""

    requires = frozenset({"clip", "kv", "global_token"})

    def forward(self, memory: Memory) -> Memory:
        """`clip` and `kv` with the token; `kv` must be on the clip axis or any other alike."""
        assert memory.global_token is not None
        token = memory.global_token.unsqueeze(1)
        clip = memory.clip + token
        kv = clip if memory.kv is memory.clip else memory.kv + token
        return replace(memory, clip=clip, kv=kv)


class WordAttention(Head):
    """How much of a clip's attention goes to words and not to dummies: a saliency in [0, 1]."""

    requires = frozenset({"word_attention", "dummies"})
    provides = frozenset({"attention"})

    def forward(
        self, memory: Memory, decoded: Decoded | None, found: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`attention` (B, L)."""
        count = memory.extras["dummies"].shape[1]
        weight = memory.extras["word_attention"][..., count:]
        return {"attention": weight.float().sum(-1).clamp(0, 1)}
