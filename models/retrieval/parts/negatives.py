"""The extra pass that shows every video a text of another sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from models.retrieval.flow import Tokens
from models.retrieval.stages import Encoders, Pass
from models.retrieval.types import Batch, StepContext

__all__ = ["WrongText", "other_samples", "other_video", "with_text_of"]


class WrongText(Pass):
    """Every sample with the text of another one of its batch, or with `Batch.wrong_text` if given.

    Args:
        choice: `roll` takes the next sample, as the public code; that may be the same video, or
            with one sample the right text itself. `roll_other_video` takes the next sample of
            another video; where there is none, `negative_mask` leaves the sample out.
            `next_if_other_video` takes the next sample and leaves out those whose next is on
            the same video (CG-DETR's code).
        outputs: what heads give under the wrong text too, each as `<name>_negative`.
        places: `own` are learned places that belong to the wrong text. `right` leaves those of the
            right text where clips read the words (QD-DETR's and CG-DETR's code); a part that reads
            the text before finds its own in `Tokens.extras["own_places"]`.
    """

    suffix = "negative"

    def __init__(
        self,
        choice: Literal["roll", "roll_other_video", "next_if_other_video"],
        outputs: Iterable[str] = ("saliency",),
        *,
        places: Literal["own", "right"] = "own",
    ) -> None:
        super().__init__()
        self.choice, self.places = choice, places
        self.outputs = frozenset(outputs)
        self.requires = self.outputs | {"text"}
        self.provides = frozenset({f"{name}_negative" for name in outputs} | {"negative_mask"})

    def change(
        self, tokens: Tokens, batch: Batch, encoders: Encoders, context: StepContext
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Tokens with the other text, and `negative_mask` (B,) bool; under `next_if_other_video`
        the tokens know it too, for fusers that let samples see each other."""
        place = torch.arange(len(batch), device=tokens.text.device)
        if batch.wrong_text is not None and batch.wrong_text_mask is not None:
            wrong = replace(
                batch,
                text=batch.wrong_text,
                text_mask=batch.wrong_text_mask,
                texts=batch.wrong_texts,
            )
            text = encoders.encode_text(wrong.text)
            given = replace(
                tokens,
                text=text,
                text_mask=wrong.text_mask,
                text_pos=encoders.text_places(text),
                texts=encoders.other_texts(wrong),
            )
            return given, {"negative_mask": torch.ones_like(place, dtype=torch.bool)}
        if self.choice == "roll":
            partner, found = place.roll(-1), torch.ones_like(place, dtype=torch.bool)
        elif self.choice == "next_if_other_video":
            video = place if batch.video_ids is None else batch.video_ids
            partner, found = place.roll(-1), video.roll(-1) != video
            tokens = replace(tokens, extras={**tokens.extras, "negative_mask": found})
        else:
            partner, found = other_video(place if batch.video_ids is None else batch.video_ids)
        return self.exchanged(tokens, partner), {"negative_mask": found}

    def exchanged(self, tokens: Tokens, partner: Tensor) -> Tokens:
        """The tokens with the texts of the samples `partner` (B,) int64, at their places."""
        changed = with_text_of(tokens, partner)
        if self.places == "own":
            return changed
        extras = {**changed.extras, "own_places": changed.text_pos}
        return replace(changed, text_pos=tokens.text_pos, extras=extras)


def with_text_of(tokens: Tokens, partner: Tensor) -> Tokens:
    """The tokens with the texts of the samples `partner` (B,) int64."""
    return replace(
        tokens,
        text=tokens.text.index_select(0, partner),
        text_mask=tokens.text_mask[partner],
        text_pos=tokens.text_pos.index_select(0, partner),
        texts={name: x.index_select(0, partner) for name, x in tokens.texts.items()},
    )


def other_samples(batch: Batch) -> Tensor:
    """(B, B) bool, whether two samples are on different videos; without ids all are."""
    place = torch.arange(len(batch), device=batch.video.device)
    video = place if batch.video_ids is None else batch.video_ids
    return video[:, None] != video


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
