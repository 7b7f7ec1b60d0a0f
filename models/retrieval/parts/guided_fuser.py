"""Clips, words and proposals read themselves and each other (EMB §3.2–3.3)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from models.retrieval.flow import Memory, Tokens
from models.retrieval.parts.clip_pooling import grid_mask, to_clips, to_grid
from models.retrieval.parts.context_query import ContextQuery
from models.retrieval.parts.guided import AttentionStack, GuidedStack, at_ends, block_max
from models.retrieval.parts.proposals import propose
from models.retrieval.stages import Fuser

__all__ = ["GuidedFuser"]

_AROUND = 7
"""Clips that the guide of a clip sees; that of a proposal sees the proposal alone."""


class GuidedFuser(Fuser):
    """Clips with what they found in the words, and a map of proposals with the same.

    Args:
        width: features.
        heads: attention heads.
        dropout: everywhere.
        layers: units of every kind.
        size: most places of the grid.
        block: places of a block of the map.
        order: see `emb`.
        similarity: as `ContextQuery`.
        tail: as `block_max`.
        longest: most blocks of a proposal; None for any number.
        padding_guides: whether padded places guide proposals, as released; a sample then depends
            on its batch.
    """

    provides = frozenset({"clip", "kv", "proposal_features"})

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dropout: float,
        layers: int,
        size: int,
        block: int,
        order: Literal["self_cross_self", "self_cross"],
        similarity: Literal["trilinear", "scaled_dot"],
        tail: float | None,
        longest: int | None,
        padding_guides: bool,
    ) -> None:
        super().__init__()
        plain = partial(AttentionStack, width, heads, dropout, layers)
        of_clips = partial(GuidedStack, width, heads, dropout, layers, kernel=_AROUND)
        of_proposals = partial(GuidedStack, width, heads, dropout, layers, kernel=1)
        self.clips_self, self.clips_words = of_clips(), of_clips()
        self.words_self, self.words_clips, self.words_proposals = plain(), plain(), plain()
        self.proposals_self, self.proposals_words = of_proposals(), of_proposals()
        if order == "self_cross_self":
            self.clips_again, self.proposals_again = of_clips(), of_proposals()
            self.words_again, self.words_of_proposals = plain(), plain()
        self.read_clips = ContextQuery(width, dropout, similarity)
        self.read_proposals = ContextQuery(width, dropout, similarity)
        self.order, self.size, self.block = order, size, block
        self.tail, self.longest, self.padding_guides = tail, longest, padding_guides
        self.mixes_samples = padding_guides or tail is not None

    def forward(self, tokens: Tokens) -> Memory:
        """Memory with `kv` on the grid and `clip` on the clips; its extras are
        `proposal_features` (B, P, d), `proposal_mask` (B, P) bool and `proposals` (B, P, 2)
        int64, first and last place."""
        keep = tokens.video_mask
        mask = grid_mask(keep, self.size)
        rows = tokens.video + tokens.video_pos
        clips = to_grid(rows, keep, self.size)
        if self.padding_guides:  # a padded place holds what a padded clip does
            clips = torch.where(mask.unsqueeze(-1), clips, rows[:, : mask.shape[1]])
        words = tokens.text + tokens.text_pos
        found = propose(clips, mask, self.block, tail=self.tail, longest=self.longest)
        run = self._released if self.order == "self_cross_self" else self._paper
        clips, by_clips, cells, by_cells = run(
            clips, mask, words, tokens.text_mask, found.features, found.mask
        )
        kv = self.read_clips(clips, by_clips, mask, tokens.text_mask)
        features = self.read_proposals(cells, by_cells, found.mask, tokens.text_mask)
        place = to_grid(tokens.video_pos, keep, self.size)
        extras = {
            "proposal_features": features,
            "proposal_mask": found.mask,
            "proposals": found.bounds,
        }
        clip = to_clips(kv, keep)
        return Memory(clip, keep, tokens.video_pos, kv, mask, place, extras=extras)

    def _ends(self, clips: Tensor, mask: Tensor, cell_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Guides of the proposals."""
        counted = None if self.padding_guides else mask
        return at_ends(block_max(clips, counted, self.block, tail=self.tail), cell_mask)

    def _released(
        self, v: Tensor, v_mask: Tensor, q: Tensor, q_mask: Tensor, p: Tensor, p_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clips, words that read them, proposals, words that read those: self, cross, self, each
        step from what the one before left, and proposals guided by the clips of that time."""
        p = self.proposals_self(p, p_mask, ends=self._ends(v, v_mask, p_mask))
        v = self.clips_self(v, v_mask)
        q = self.words_self(q, q_mask)
        with_p = self.words_proposals(q, p_mask, p)
        p = self.proposals_words(p, p_mask, q, q_mask, ends=self._ends(v, v_mask, p_mask))
        with_v = self.words_clips(q, v_mask, v)
        v = self.clips_words(v, v_mask, q, q_mask, padding_reads_all=self.padding_guides)
        p = self.proposals_again(p, p_mask, ends=self._ends(v, v_mask, p_mask))
        with_p = self.words_of_proposals(with_p, q_mask)
        v = self.clips_again(v, v_mask)
        with_v = self.words_again(with_v, q_mask)
        return v, with_v, p, with_p

    def _paper(
        self, v: Tensor, v_mask: Tensor, q: Tensor, q_mask: Tensor, p: Tensor, p_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `_released`, in the order of TEA's Eq. 9."""
        p = self.proposals_self(p, p_mask, ends=self._ends(v, v_mask, p_mask))
        v = self.clips_self(v, v_mask)
        p = self.proposals_words(p, p_mask, q, q_mask, ends=self._ends(v, v_mask, p_mask))
        v = self.clips_words(v, v_mask, q, q_mask)
        q = self.words_self(q, q_mask)
        return v, self.words_clips(q, v_mask, v), p, self.words_proposals(q, p_mask, p)
