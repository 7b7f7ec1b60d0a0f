"""What VideoChat sees with: frames of one clip to the soft tokens of a language model.

VideoChat: Chat-Centric Video Understanding, https://arxiv.org/abs/2305.06355. BLIP-2's ViT-g looks
at every frame alone; one query per clip gathers over all frames in the last blocks (global MHRA of
UniFormerV2); BLIP-2's Q-Former with 64 more queries reads both; a linear layer leads to LLaMA.

ViT and Q-Former are those of transformers. Equal to the public code (OpenGVLab/Ask-Anything,
`video_chat/models`, commit 4dd8210b) on one clip in float32: tests/models/captioners.
What differs: clips of a batch do not touch each other in either; here a single frame is the same
path with T = 1, there, too. Local MHRA and temporal downsampling are left out: no published
checkpoint has them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.captioners.colours import CLIP_MEAN, CLIP_STD
from models.captioners.limits import Transformer

__all__ = [
    "PUBLISHED",
    "SIZES",
    "TINY",
    "GlobalAttention",
    "VideoChatEyes",
    "VisionSizes",
    "normalised",
]

_MLP_RATIO = 4.3637


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of everything before the language model.

    Args:
        side: pixels of the square picture.
        patch: pixels of a square patch.
        dim: width of the ViT.
        depth: blocks of the ViT.
        heads: of the ViT and of the global attention.
        gathers: global attentions, after the last `gathers` blocks.
        q_dim: width of the Q-Former.
        q_depth: layers of the Q-Former; every second one looks at the picture.
        q_heads: heads of the Q-Former.
        q_ffn: width of its feed-forward part.
        queries: of BLIP-2.
        extra: queries that VideoChat adds.
    """

    side: int
    patch: int
    dim: int
    depth: int
    heads: int
    gathers: int
    q_dim: int
    q_depth: int
    q_heads: int
    q_ffn: int
    queries: int
    extra: int

    @property
    def soft_tokens(self) -> int:
        """Tokens of the language model that stand for a clip."""
        return self.queries + self.extra

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // self.patch

    def flops(self, frames: int, llm_dim: int) -> float:
        """Of one clip."""
        tokens = 1 + self.grid**2
        vit = self._vit.flops(tokens) + 2 * 3 * self.patch**2 * self.dim * self.grid**2
        seen = frames * tokens
        # Keys and values of all tokens; the rest is one token per clip.
        gather = 4 * self.dim * self.dim * seen + 54 * self.dim * seen
        look = (self.q_depth + 1) // 2
        read = look * (4 * self.dim * self.q_dim * seen + 4 * self.q_dim * self.soft_tokens * seen)
        asked = self._q.flops(self.soft_tokens) + 2 * self.soft_tokens * self.q_dim * llm_dim
        return frames * vit + self.gathers * gather + read + asked

    def weights(self, llm_dim: int) -> float:
        """How many numbers all of it has, but for biases and norms."""
        gather = self.gathers * (4 * self.dim**2 + 2 * self.dim * round(_MLP_RATIO * self.dim))
        look = (self.q_depth + 1) // 2 * 2 * self.q_dim * (self.q_dim + self.dim)
        return (
            self._vit.layer_weights + gather + self._q.layer_weights + look + self.q_dim * llm_dim
        )

    @property
    def _vit(self) -> Transformer:
        return Transformer(self.depth, self.dim, int(_MLP_RATIO * self.dim), causal=False)

    @property
    def _q(self) -> Transformer:
        return Transformer(self.q_depth, self.q_dim, self.q_ffn, causal=False)


PUBLISHED = VisionSizes(224, 14, 1408, 39, 16, 8, 768, 12, 12, 3072, 32, 64)
"""`video_chat/configs/config.json`, for both language models."""

TINY = VisionSizes(56, 14, 48, 4, 4, 2, 48, 4, 4, 96, 6, 3)
"""The same in small, for a machine without weights and for tests."""

SIZES = (PUBLISHED, TINY)
"""A checkpoint is recognised by its width."""


class GlobalAttention(nn.Module):
    """One step of the query that gathers over a clip (Global MHRA of UniFormerV2).

    Args:
        dim: width of the ViT.
        heads: of the attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        hidden = round(_MLP_RATIO * dim)
        self.dpe = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(dim) for _ in range(3))
        layers = (("c_fc", nn.Linear(dim, hidden)), ("gelu", nn.GELU()))
        self.mlp = nn.Sequential(OrderedDict([*layers, ("c_proj", nn.Linear(hidden, dim))]))

    def forward(self, query: Tensor, seen: Tensor, frames: int) -> Tensor:
        """The query after it looked.

        Args:
            query: (B, 1, C).
            seen: (B * frames, 1 + H * W, C), states of the ViT, class token first; not changed.
            frames: T.
        """
        places = self._with_places(self.ln_3(seen), frames)
        looked, _ = self.attn(self.ln_1(query), places, places, need_weights=False)
        query = query + looked
        moved: Tensor = query + self.mlp(self.ln_2(query))
        return moved

    def _with_places(self, seen: Tensor, frames: int) -> Tensor:
        """(B, T * (1 + H * W), C): patches with what a depthwise convolution over T, H, W adds."""
        rows, tokens, dim = seen.shape
        side = round((tokens - 1) ** 0.5)
        patches = seen[:, 1:].reshape(rows // frames, frames, side, side, dim)
        added = self.dpe(patches.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        patches = (patches + added).reshape(rows, tokens - 1, dim)
        return torch.cat([seen[:, :1].to(patches.dtype), patches], 1).reshape(
            -1, frames * tokens, dim
        )


class VideoChatEyes(nn.Module):
    """Frames to soft tokens.

    Args:
        sizes: of its parts.
        llm_dim: width of the language model.
    """

    _dtype: torch.dtype
    _half: frozenset[str]

    def __init__(self, sizes: VisionSizes, llm_dim: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision: Any = _vit(sizes)
        self.gather_query = nn.Parameter(torch.zeros(1, 1, sizes.dim))
        self.gather = nn.ModuleList(
            GlobalAttention(sizes.dim, sizes.heads) for _ in range(sizes.gathers)
        )
        self.qformer: Any = _qformer(sizes)
        self.query_tokens = nn.Parameter(torch.zeros(1, sizes.queries, sizes.q_dim))
        self.extra_query_tokens = nn.Parameter(torch.zeros(1, sizes.extra, sizes.q_dim))
        self.llama_proj = nn.Linear(sizes.q_dim, llm_dim)
        self.compute_in(torch.float32)
        self.eval()

    def compute_in(self, dtype: torch.dtype) -> VideoChatEyes:
        """Multiply in `dtype`; weights are to be kept in what `dtypes` says.

        The public code keeps float32 weights and multiplies under autocast in float16: the states
        between blocks and all norms stay float32. That is so here, with half the memory.
        """
        kinds = (nn.Linear, nn.Conv3d, nn.MultiheadAttention)
        # Not the Conv2d of patches: the states take their type from it.
        halves = [name for name, each in self.named_modules() if isinstance(each, kinds)]
        self._dtype = dtype
        self._half = frozenset(
            f"{name}.{weight}"
            for name in halves
            for weight, _ in self.get_submodule(name).named_parameters()
        )
        return self

    def dtypes(self, name: str) -> torch.dtype:
        """The type of numbers that the weight called `name` is to be kept in."""
        return self._dtype if name in self._half else torch.float32

    def forward(self, frames: Tensor) -> Tensor:
        """Soft tokens (B, queries + extra, llm_dim) in the type of `compute_in`.

        Args:
            frames: uint8 RGB (B, T, side, side, 3).
        """
        with torch.autocast(frames.device.type, self._dtype, self._dtype != torch.float32):
            return self.tokens(self.read(self.look(normalised(frames))))

    def look(self, pixels: Tensor) -> Tensor:
        """States of all patches and the gathering query, last: (B, T * (1 + H * W) + 1, C).

        Args:
            pixels: float32 (B, T, 3, side, side), normalised.
        """
        clips, frames = pixels.shape[:2]
        seen = self.vision.embeddings(pixels.flatten(0, 1))
        query = self.gather_query.expand(clips, -1, -1)
        first = self.sizes.depth - self.sizes.gathers
        # Block by block: `output_hidden_states` would hold all forty states of all frames.
        for index, block in enumerate(self.vision.encoder.layers):
            seen = block(seen)
            if index >= first:
                query = self.gather[index - first](query, seen, frames)
        return torch.cat([seen.reshape(clips, -1, self.sizes.dim), query], 1)

    def normed(self, states: Tensor) -> Tensor:
        """`ln_vision`: in float32, with an epsilon of its own."""
        normed: Tensor = self.vision.post_layernorm(states.float())
        return normed

    def read(self, states: Tensor) -> Tensor:
        """Last states of all queries of the Q-Former: (B, queries + extra, q_dim)."""
        queries = torch.cat([self.query_tokens, self.extra_query_tokens], 1)
        answered = self.qformer(
            query_embeds=queries.expand(len(states), -1, -1),
            encoder_hidden_states=self.normed(states),
        )
        last: Tensor = answered.last_hidden_state
        return last

    def tokens(self, answers: Tensor) -> Tensor:
        """Into the width of the language model."""
        projected: Tensor = self.llama_proj(answers)
        return projected


def normalised(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) to float32 (B, T, 3, H, W), as CLIP normalises, and the demo of the
    public code; its training took ImageNet's colours.
    """
    mean, std = (torch.tensor(each, device=frames.device) for each in (CLIP_MEAN, CLIP_STD))
    return ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3).contiguous()


def _vit(sizes: VisionSizes) -> Any:
    from models.compat import ensure_torchvision

    ensure_torchvision()
    from transformers import Blip2VisionConfig, Blip2VisionModel

    vit = Blip2VisionModel(
        Blip2VisionConfig(
            hidden_size=sizes.dim,
            intermediate_size=int(_MLP_RATIO * sizes.dim),
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            image_size=sizes.side,
            patch_size=sizes.patch,
            layer_norm_eps=1e-6,
        )
    )
    vit.post_layernorm.eps = 1e-5  # `ln_vision` of LAVIS; transformers takes that of the blocks
    return vit


def _qformer(sizes: VisionSizes) -> Any:
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    return Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=sizes.q_dim,
            num_hidden_layers=sizes.q_depth,
            num_attention_heads=sizes.q_heads,
            intermediate_size=sizes.q_ffn,
            encoder_hidden_size=sizes.dim,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-12,
            cross_attention_frequency=2,
        )
    )
