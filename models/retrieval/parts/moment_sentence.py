"""What CG-DETR learns beside moments and saliency: moments resemble their sentence, the attention
of clips follows that resemblance, dummies and prompts differ from each other.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.retrieval.criterion import (
    ClipTerm,
    NegativePairTerm,
    RankTerm,
    negative_clips,
)
from models.retrieval.flow import Memory, Outcome
from models.retrieval.parts.attention import xavier
from models.retrieval.parts.dummies import LeadingTokens
from models.retrieval.parts.losses import mean_where
from models.retrieval.stages import Aligner, LossTerm
from models.retrieval.types import Batch

__all__ = [
    "AttentionCoverTerm",
    "AttentionNegativeTerm",
    "DistillTerm",
    "Log",
    "MomentSentence",
    "MomentSentenceTerm",
    "OrthogonalTerm",
    "ReleasedRank",
]

Log = Literal["softplus", "log"]
"""As `losses.negative_pair_losses`: `log` is the released form, infinite where it saturates."""

_EPS = 1e-6
_ALMOST_0 = 1e-38


class MomentSentence(Aligner):
    """Tokens of the moment, of the rest of the video, of the sentence and of the dummies.

    Args:
        moment: reads the clips of the moment, or those outside.
        sentence: reads the words, or the dummies.
    """

    requires = frozenset({"dummies", "dummy_places"})
    provides = frozenset(
        {"moment_token", "other_token", "sentence_token", "dummy_token", "frames", "likeness"}
    )

    def __init__(self, moment: LeadingTokens, sentence: LeadingTokens) -> None:
        super().__init__()
        self.moment = moment
        self.sentence = sentence
        xavier(moment)

    def forward(self, memory: Memory, batch: Batch) -> dict[str, Tensor]:
        """What the losses compare; nothing for a batch without targets.

        Returns:
            `moment_token`, `other_token`, `sentence_token`, `dummy_token` (B, d); `frames`
            (B, L, d), clips that have read those on their side of the moment's border;
            `likeness` (B, L, n + T), dot products of clips as those of the moment with dummies
            and words.
        """
        if batch.targets is None:
            return {}
        tokens, inside = memory.tokens, batch.targets.in_moment
        video, place, real = tokens.video, tokens.video_pos, tokens.video_mask
        moment, within = self.moment(video, place, real & inside)
        other, outside = self.moment(video, place, real & ~inside)
        sentence, words = self.sentence(tokens.text, tokens.text_pos, tokens.text_mask)
        dummies = memory.extras["dummies"]
        everyone = torch.ones_like(dummies[..., 0], dtype=torch.bool)
        places = memory.extras["dummy_places"]
        dummy, dummies = self.sentence(dummies, places, everyone)
        names = torch.cat([dummies, words], dim=1)
        return {
            "moment_token": moment.squeeze(1).float(),
            "other_token": other.squeeze(1).float(),
            "sentence_token": sentence.squeeze(1).float(),
            "dummy_token": dummy.squeeze(1).float(),
            "frames": torch.where(inside.unsqueeze(-1), within, outside).float(),
            "likeness": (within @ names.transpose(1, 2)).float(),
        }


class MomentSentenceTerm(LossTerm):
    """A moment resembles its sentence and not the dummies, and its clips resemble it.

    Args:
        weight: factor in the sum.
        dummy_labels: `own` keeps a moment away from its sample's dummies. `released` takes the
            first largest entry of a label matrix full of ones as the class: the second sample's
            dummies for the first moment, the first sample's for all others.
        log: `softplus` is the cross entropy of logits; `log` of saturated sigmoids.
        padding: whether padded clips count in the mean.
    """

    name = "ms_align"
    requires = frozenset({"moment_token", "other_token", "sentence_token", "dummy_token", "frames"})

    def __init__(
        self,
        weight: float,
        *,
        dummy_labels: Literal["own", "released"],
        log: Log,
        padding: Literal["masked", "counted"],
    ) -> None:
        super().__init__(weight)
        self.dummy_labels, self.log, self.padding = dummy_labels, log, padding

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar: sentence, dummy and clip part."""
        found = outcome.predictions.extras
        unit = {
            name: functional.normalize(found[f"{name}_token"], dim=-1)
            for name in ("moment", "other", "sentence", "dummy")
        }
        known = self._known(outcome)
        place = torch.arange(len(known), device=known.device)
        with torch.autocast(known.device.type, enabled=False):
            words = torch.cat([unit["moment"], unit["other"]]) @ unit["sentence"].T
            dummies = torch.cat([unit["moment"], unit["other"]]) @ unit["dummy"].T
        words, dummies = (torch.cat(x.chunk(2), dim=1).log_softmax(-1) for x in (words, dummies))
        sentence = -words.gather(1, place[:, None]).squeeze(1)
        return mean_where(sentence + self._apart(dummies, place), known) + self._clips(outcome)

    def _known(self, outcome: Outcome) -> Tensor:
        """(B,) bool, samples that have a moment to compare with."""
        targets = outcome.targets
        if self.padding == "counted":
            return torch.ones_like(targets.in_moment[:, 0])
        known = (targets.in_moment & outcome.batch.video_mask).any(1)
        return known if targets.has_moments is None else known & targets.has_moments

    def _apart(self, log_p: Tensor, place: Tensor) -> Tensor:
        """(B,) from log probabilities (B, 2B) of each sample's dummies."""
        if self.dummy_labels == "released":
            wanted = (place == 0).long()[:, None]
            return -log_p.gather(1, wanted).squeeze(1)
        own = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, place[:, None], True)
        return -log_p.masked_fill(own, -torch.inf).logsumexp(-1)

    def _clips(self, outcome: Outcome) -> Tensor:
        found, targets = outcome.predictions.extras, outcome.targets
        with torch.autocast(found["frames"].device.type, enabled=False):
            score = (found["frames"] @ found["moment_token"].unsqueeze(-1)).squeeze(-1)
        label = targets.in_moment.float()
        real = outcome.batch.video_mask
        if self.log == "softplus":
            loss = functional.binary_cross_entropy_with_logits(score, label, reduction="none")
        else:
            loss = _cross_entropy(score.sigmoid(), label)
        if self.padding == "counted":
            return (loss * real).mean()
        return mean_where(loss, real & self._known(outcome).unsqueeze(1))


class DistillTerm(LossTerm):
    """The attention of a moment's clips to dummies and words follows how alike they are.

    Args:
        weight: factor in the sum.
        padding: whether padded words are among what is attended to and in the mean.
    """

    name = "distill"
    requires = frozenset({"likeness", "word_attention", "dummies"})

    def __init__(self, weight: float, *, padding: Literal["masked", "counted"]) -> None:
        super().__init__(weight)
        self.padding = padding

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        memory, targets = outcome.trace.memory, outcome.targets
        likeness = outcome.predictions.extras["likeness"].detach()
        attention = memory.extras["word_attention"].float()
        count = memory.extras["dummies"].shape[1]
        real = functional.pad(outcome.batch.text_mask, (count, 0), value=True).unsqueeze(1)
        clips = targets.in_moment
        if self.padding == "counted":
            real = torch.ones_like(real)
        else:
            clips = clips & outcome.batch.video_mask
        wanted = likeness.masked_fill(~real, torch.finfo(likeness.dtype).min).softmax(-1)
        wanted = wanted * real
        loss = torch.xlogy(wanted, wanted) - wanted * torch.log(attention + _EPS)
        if self.padding == "masked" and targets.has_moments is not None:
            clips = clips & targets.has_moments.unsqueeze(1)
        return mean_where(loss.sum(-1) / real.sum(-1), clips)


class OrthogonalTerm(LossTerm):
    """Dummies of a sample differ from each other, and so do prompts."""

    name = "orthogonal"
    requires = frozenset({"dummies", "prompts"})

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        extras = outcome.trace.memory.extras
        return _likeness(extras["dummies"]) + _likeness(extras["prompts"][:1])


class AttentionCoverTerm(ClipTerm):
    """Salient clips attend to words and others to dummies: binary cross entropy.

    Args:
        weight: factor in the sum.
        padding: whether padded clips count, as clips without saliency.
        of: as `ClipTerm`.
    """

    name = "cover"

    def __init__(
        self, weight: float, *, padding: Literal["masked", "counted"], of: str = "attention"
    ) -> None:
        super().__init__(weight, of=of)
        self.padding = padding

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        label, real = outcome.targets.saliency.clamp(0, 1), outcome.batch.video_mask
        score = self.scores(outcome)
        if self.padding == "counted":
            return _cross_entropy(score, label).mean()
        return mean_where(_cross_entropy(score.clamp(_EPS, 1 - _EPS), label), real)


class AttentionNegativeTerm(NegativePairTerm):
    """No clip attends to words of a wrong text."""

    name = "negative_pair_attention"
    requires = frozenset({"attention_negative", "negative_mask"})

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        away = 1 - outcome.predictions.extras["attention_negative"]
        if self.log == "softplus":
            away = away.clamp(min=_EPS)
        each = -torch.where(negative_clips(outcome), away, 1).log().sum(1)
        return self.over_samples(each, outcome)


class ReleasedRank(RankTerm):
    """The ranking as CG-DETR's code adds it up.

    Samples with and without a wrong text have a mean each; a single one without counts nothing
    (its scores get an axis too many), and of the attention none without counts.
    """

    def over_samples(self, loss: Tensor, outcome: Outcome) -> Tensor:
        """The scalar of the losses (B,) of the samples."""
        found = outcome.predictions.extras["negative_mask"]
        lost = (~found).sum() == 1 if self.of == "saliency" else found.any()
        return mean_where(loss, found) + mean_where(loss, ~found & ~(lost & found.any()))


def _cross_entropy(p: Tensor, label: Tensor) -> Tensor:
    """Binary cross entropy of probabilities, whose logarithms end at −100 as in PyTorch's."""
    yes, no = (torch.where(x > 0, x, _ALMOST_0).log().clamp(min=-100) for x in (p, 1 - p))
    return -(label * yes + (1 - label) * no)


def _likeness(vectors: Tensor) -> Tensor:
    """Mean |cosine| of different vectors of (B, n, d), their own zeros counted; 0 for one."""
    unit = functional.normalize(vectors.float(), dim=-1)
    with torch.autocast(unit.device.type, enabled=False):
        cosine = unit @ unit.detach().transpose(1, 2)
    same = torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)
    return cosine.masked_fill(same, 0).abs().mean()
