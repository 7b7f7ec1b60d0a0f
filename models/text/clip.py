"""CLIP's text side: states of all tokens after `ln_final`, and the end token's, projected.

As in moment_detr and QD-DETR (specs/feature_extractors.md §2.1): token states are *not* projected
and include the start and end markers. What differs: the valid length is the position of the end
token, where the public code counts ids that are not 0, which miscounts texts with a `!` in a word;
and a text may fill the whole context, where the public code stops at 32 tokens (its tokenizer keeps
30 and the two markers of a longer text).

A text side without causal mask (MobileCLIP) lets words see the padding, so its texts are padded to
the whole context as in training; the states of padding are cut off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import UsageError
from models.calibration import Standardise, calibrated_weights, example_sentences
from models.clip import TINY_MODEL, BuiltClip, build_clip
from models.text.base import SIGN, TEXT_ENCODERS, WORD, TextEncoder, TextStates, is_sign
from models.weights import Checkpoint

__all__ = ["ClipText"]

_CHUNK = 128


@TEXT_ENCODERS.register("clip")
class ClipText(TextEncoder):
    """The text side of a CLIP; with the same arguments, of the very CLIP that `backbones.clip` is.

    Args:
        checkpoint: see `models.clip.build_clip`; None for seeded random weights.
        model: a model name of open_clip with CLIP's own tokenizer, or "tiny"; None: what the
            checkpoint is, or `ViT-B-32-quickgelu`.
        tag: open_clip's name of the training ("openai"), where the file does not tell it.
        seed: of the random weights.
        calibrated: standardise states and pooled vectors of random weights per dimension.
        device: torch device of the weights.
    """

    name = "clip"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "full": {},
        "tiny": {"model": TINY_MODEL, "calibrated": True},
    }
    edges = (1, 1)

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        model: str | None = None,
        tag: str | None = None,
        seed: int = 0,
        calibrated: bool = False,
        device: str = "cpu",
    ) -> None:
        clip = build_clip(model, checkpoint, seed, tag, side="text")
        self.weights, self.model = clip.weights, clip.model
        self._quick_gelu = clip.quick_gelu
        self._tower = _text_tower(clip)
        self._tokenizer = _tokenizer(clip, self._tower)
        self._device = torch.device("cpu")
        self._states: nn.Module = nn.Identity()
        self._pooled: nn.Module = nn.Identity()
        self.dim = int(self._tower.ln_final.weight.shape[0])
        if calibrated and self.weights.kind == "random":
            self._calibrate(seed)
        self.pooled_dim = len(self.encode(["a"])[0].pooled)
        self._device = torch.device(device)
        for each in (self._tower, self._states, self._pooled):
            each.to(self._device)

    def params(self) -> dict[str, Any]:
        """See `TextEncoder.params`."""
        calibrated = isinstance(self._states, Standardise)
        return super().params() | {
            "model": self.model,
            "quick_gelu": self._quick_gelu,
            "calibrated": calibrated,
        }

    def _encode(self, texts: Sequence[str]) -> list[TextStates]:
        encoded: list[TextStates] = []
        for first in range(0, len(texts), _CHUNK):
            encoded += self._encode_chunk(texts[first : first + _CHUNK])
        return encoded

    @torch.inference_mode()
    def _encode_chunk(self, texts: Sequence[str]) -> list[TextStates]:
        context = len(self._tower.positional_embedding)
        words = [self._tokenizer.encode(text) for text in texts]
        rows = [
            [self._tokenizer.sot_token_id, *each[: context - 2], self._tokenizer.eot_token_id]
            for each in words
        ]
        states, pooled = self._forward(rows)
        states, pooled = self._states(states).float().cpu(), self._pooled(pooled).float().cpu()
        return [
            TextStates(
                states[i, : len(row)].numpy().copy(),
                pooled[i].numpy().copy(),
                len(word) > context - 2,
                np.array([self._kind(each) for each in row], np.uint8),
            )
            for i, (row, word) in enumerate(zip(rows, words, strict=True))
        ]

    def _kind(self, token: int) -> int:
        piece: str = self._tokenizer.decoder[token]
        return SIGN if is_sign(piece.removesuffix("</w>")) else WORD

    def _forward(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids to states (B, T, D) and pooled (B, P)."""
        tower = self._tower
        mask = tower.attn_mask
        lengths = torch.tensor([len(row) for row in rows])
        # Causal attention never sees padding; without it, padding is part of what was trained.
        longest = len(tower.positional_embedding) if mask is None else int(lengths.max())
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        x = tower.token_embedding(ids.to(self._device)) + tower.positional_embedding[:longest]
        x = tower.transformer(x, attn_mask=None if mask is None else mask[:longest, :longest])
        states = tower.ln_final(x)
        ends = states[torch.arange(len(rows)), lengths - 1]
        projection = tower.text_projection
        if projection is None:
            return states, ends
        return states, projection(ends) if isinstance(projection, nn.Module) else ends @ projection

    def _calibrate(self, seed: int) -> None:
        sentences = example_sentences(seed)
        raw = self._encode(sentences)
        tokens = np.concatenate([each.tokens for each in raw])
        self._states = Standardise.measured(torch.from_numpy(tokens))
        self._pooled = Standardise.measured(
            torch.from_numpy(np.stack([each.pooled for each in raw]))
        )
        self.weights = calibrated_weights(self.weights, "text", seed)


def _text_tower(clip: BuiltClip) -> Any:
    """The part of a CLIP that encodes text, whether open_clip keeps it apart or not."""
    tower: Any = getattr(clip.net, "text", clip.net)
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", "argmax"))
    for problem, found in (
        ("its text side is a network of Hugging Face", not hasattr(tower, "token_embedding")),
        ("its texts carry a class token (CoCa)", getattr(tower, "cls_emb", None) is not None),
        (f"its pooled vector is the '{pool}' token, not the end marker's", pool != "argmax"),
        ("it masks padding in a way of its own", getattr(tower, "use_pad_mask", False)),
    ):
        if found:
            raise UsageError(
                f"CLIP '{clip.model}' gives no token states that VMR models know: {problem}; "
                "choose a model of OpenAI's architecture (ViT-*, RN*)"
            )
    if tower is clip.net:
        tower.visual = nn.Identity()  # the picture side would only take memory
    return tower


def _tokenizer(clip: BuiltClip, tower: Any) -> Any:
    """CLIP's byte-pair tokenizer; open_clip ships its table, so no network is needed."""
    import open_clip

    foreign = clip.config.get("text_cfg", {}).get("hf_tokenizer_name")
    if foreign:
        raise UsageError(
            f"CLIP '{clip.model}' needs the tokenizer '{foreign}' of the Hugging Face hub; only "
            "models with CLIP's own tokenizer are supported"
        )
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    if tower.token_embedding.num_embeddings != tokenizer.vocab_size:
        raise UsageError(
            f"CLIP '{clip.model}' has a vocabulary of {tower.token_embedding.num_embeddings:,} "
            f"tokens, CLIP's own tokenizer has {tokenizer.vocab_size:,}: the ids would mean other "
            "words"
        )
    return tokenizer
