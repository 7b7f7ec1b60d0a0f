"""The extra pass that shows every video a text of another sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from models.retrieval.stages import Encoders, Pass, Tokens
from models.retrieval.types import Batch, StepContext

__all__ = ["WrongText", "other_video"]


class WrongText(Pass):
    """Every sample with the text of another one of its batch, or with `Batch.wrong_text` if given.

    Args:
        choice: `roll` takes the next sample, as the public code; that may be the same video, or
            with one sample the right text itself. `roll_other_video` takes the next sample of
            another video; where there is none, `negative_mask` leaves the sample out.
        outputs: what heads give under the wrong text too, each as `<name>_negative`.
    """

    suffix = "negative"

    def __init__(
        self, choice: Literal["roll", "roll_other_video"], outputs: Iterable[str] = ("saliency",)
    ) -> None:
        super().__init__()
        self.choice = choice
        self.outputs = frozenset(outputs)
        self.requires = self.outputs | {"text"}
        self.provides = frozenset({f"{name}_negative" for name in outputs} | {"negative_mask"})

    def change(
        self, tokens: Tokens, batch: Batch, encoders: Encoders, context: StepContext
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Tokens with the other text, and `negative_mask` (B,) bool."""
        place = torch.arange(len(batch), device=tokens.text.device)
        if batch.wrong_text is not None and batch.wrong_text_mask is not None:
            text = encoders.encode_text(batch.wrong_text)
            given = replace(
                tokens,
                text=text,
                text_mask=batch.wrong_text_mask,
                text_pos=encoders.text_places(text),
            )
            return given, {"negative_mask": torch.ones_like(place, dtype=torch.bool)}
        if self.choice == "roll":
            partner, found = place.roll(-1), torch.ones_like(place, dtype=torch.bool)
        else:
            partner, found = other_video(place if batch.video_ids is None else batch.video_ids)
        changed = replace(
            tokens,
            text=tokens.text.index_select(0, partner),
            text_mask=tokens.text_mask[partner],
            text_pos=tokens.text_pos.index_select(0, partner),
        )
        return changed, {"negative_mask": found}


def other_video(video_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The next sample, in circular order, of another video.

    Args:
        video_ids: (B,) int64.

    Returns:
        Indices (B,), and whether there is such a sample (B,) bool.
    """
    count = len(video_ids)
    place = torch.arange(count, device=video_ids.device)
    candidates = (place[:, None] + place + 1) % count
    other = video_ids[candidates] != video_ids[:, None]
    first = other.int().argmax(1, keepdim=True)
    return candidates.gather(1, first).squeeze(1), other.any(1)
