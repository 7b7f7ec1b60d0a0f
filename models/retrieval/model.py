"""One model of the family: its parts along the path, and its criterion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.retrieval.criterion import Criterion
from models.retrieval.decode import Decoding
from models.retrieval.flow import Memory, Tokens, Trace
from models.retrieval.path import (
    cat_samples,
    check_path,
    check_widths,
    in_precision,
    passes_read,
    split_samples,
)
from models.retrieval.stages import (
    Aligner,
    Constant,
    Head,
    LossTerm,
    Part,
    Parts,
    Pass,
    Refiner,
    View,
)
from models.retrieval.types import Batch, Predictions, StepContext

__all__ = ["RetrievalModel"]

_LAYERED = ("logits", "spans")


class RetrievalModel(nn.Module):
    """A retrieval model composed of parts; built by `create_model`.

    Args:
        parts: the parts in the order of the path.
        criterion: the loss.
        decoding: how its spans become windows.
        recipe: keyword arguments of `create_model` that build this model again.
        carried: what its batches carry beside video and text: `side.<name>`, `text.<name>`.

    Raises:
        UsageError: the parts do not fit.
    """

    def __init__(
        self,
        parts: Parts,
        criterion: Criterion,
        *,
        decoding: Decoding | None = None,
        recipe: Mapping[str, Any] | None = None,
        carried: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_path(parts, carried)
        self.encoders = parts.encoders
        self.merges = nn.ModuleList(parts.merges)
        self.fuser = parts.fuser
        self.refiners = nn.ModuleList(parts.refiners)
        self.decoder = parts.decoder
        self.heads = nn.ModuleList(parts.heads)
        counted = cast("Iterable[LossTerm]", criterion.terms.values())
        self.passes = nn.ModuleList(passes_read(parts, counted))
        self.aligners = nn.ModuleList(parts.aligners)
        self.views = nn.ModuleList(parts.views)
        self.criterion = criterion
        self.decoding = decoding or Decoding()
        self.recipe = dict(recipe or {})

    @property
    def reads(self) -> frozenset[str]:
        """What batches must carry beside video and text: `side.<name>`, `text.<name>`, `events`."""
        parts = [part for part in self.modules() if isinstance(part, Part)]
        needs = {need for part in parts for need in part.requires}
        return frozenset(
            need for need in needs if need == "events" or need.startswith(("side.", "text."))
        )

    @property
    def constants(self) -> frozenset[str]:
        """Names of the buffers that no step changes."""
        return frozenset(
            f"{path}.{name}"
            for path, part in self.named_modules()
            if isinstance(part, Constant)
            for name, _ in part.named_buffers(recurse=False)
        )

    def forward(self, batch: Batch) -> Predictions:
        """Predictions of a batch; in training also what the losses need beside.

        Args:
            batch: `video` (B, L, Dv), `video_mask`, `text` (B, T, Dt), `text_mask`, and what of
                `side`, `texts` and `events` it `reads`.

        Returns:
            `logits` (B, Q, 2) with index 0 foreground, `spans` (B, Q, 2) as (centre, width) in
            [0, 1], `saliency` (B, L), `layers`; in training `extras` holds the outputs of the
            extra passes, e.g. `saliency_negative` (B, L) and `negative_mask` (B,).
        """
        return self.trace(batch, passes=self.training).predictions

    def losses(self, batch: Batch, context: StepContext | None = None) -> dict[str, Tensor]:
        """Weighted scalar loss terms by name; their sum is what training minimises.

        Args:
            batch: with targets.
            context: where training stands.
        """
        context = context or StepContext()
        batch = self._in_precision(batch)
        seen = [batch]
        if self.training:
            seen += [view.change(batch) for view in cast("Iterable[View]", self.views)]
        found: list[dict[str, Tensor]] = []
        for number, each in enumerate(seen):
            here = replace(context, view=number)
            found.append(self.criterion(self.trace(each, passes=True, context=here), each, here))
        if len(found) == 1:
            return found[0]
        return {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}

    def after_step(self, context: StepContext) -> None:
        """Let parts that keep a state of their own (queues, moving averages) take the step.

        Args:
            context: where training stands; called once after every optimiser step.
        """
        for part in self.modules():
            if isinstance(part, Part):
                part.after_step(context)

    def trace(self, batch: Batch, *, passes: bool, context: StepContext | None = None) -> Trace:
        """Walk the path and keep what was made on the way.

        Args:
            batch: as `forward`.
            passes: whether to run the extra passes.
            context: where training stands, for passes that change with it.

        Raises:
            UsageError: features of another width than the model was built for, or of a type that
                its weights would cut.
        """
        batch = self._in_precision(batch)
        widths = ("video_dim", "text_dim", "side_dims", "text_dims")
        if {"video_dim", "text_dim"} <= self.recipe.keys():
            check_widths(batch, **{key: self.recipe[key] for key in widths if key in self.recipe})
        tokens = encoded = self.encoders(batch)
        for merge in self.merges:
            tokens = merge(tokens, batch, self.encoders)
        memory, extra = self._remember(tokens, batch, context or StepContext(), passes=passes)
        for aligner in cast("Iterable[Aligner]", self.aligners) if passes else ():
            extra.update(aligner(memory, batch))
        decoded = self.decoder(memory) if self.decoder is not None else None
        outputs: dict[str, Tensor] = {}
        for head in self.heads:
            outputs.update(head(memory, decoded, {**extra, **outputs}))
        return Trace(tokens, memory, decoded, _predictions(outputs, extra), encoded)

    def _in_precision(self, batch: Batch) -> Batch:
        weight = next(self.encoders.parameters(), None)
        return batch if weight is None else in_precision(batch, weight.dtype)

    def _remember(
        self, tokens: Tokens, batch: Batch, context: StepContext, *, passes: bool
    ) -> tuple[Memory, dict[str, Tensor]]:
        """Memory of the batch, and the outputs of the extra passes.

        All passes go through fuser and refiners as one larger batch, which halves the number of
        kernels, unless the fuser lets samples see each other.
        """
        active = list(cast("Iterable[Pass]", self.passes)) if passes else []
        waiting = [each for each in active if each.waits(context)]
        at_once = [each for each in active if each not in waiting]
        versions, extra = [tokens], {}
        for each in at_once:
            changed, facts = each.change(tokens, batch, self.encoders, context)
            versions.append(changed)
            extra.update(facts)
        if self._mixes_samples() or not _of_one_shape(versions):
            memories = [self._fuse(tokens), *map(self._fuse_aside, versions[1:])]
        else:
            joint = cat_samples(versions) if len(versions) > 1 else tokens
            memories = split_samples(self._fuse(joint), len(versions))
        for each in waiting:
            changed, facts = each.change_after(memories[0], tokens, batch, self.encoders, context)
            memories.append(self._fuse_aside(changed))
            extra.update(facts)
        for each, memory in zip((*at_once, *waiting), memories[1:], strict=True):
            for head in cast("Iterable[Head]", self.heads):
                if head.provides <= each.outputs:
                    found = head(memory, None, {})
                    extra.update({f"{key}_{each.suffix}": x for key, x in found.items()})
        return memories[0], extra

    def _fuse(self, tokens: Tokens) -> Memory:
        memory: Memory = replace(self.fuser(tokens), source=tokens)
        for refiner in self.refiners:
            memory = refiner(memory)
        return memory

    def _fuse_aside(self, tokens: Tokens) -> Memory:
        """Memory of an extra pass by itself: batch norms take their running statistics and do not
        learn from it, so that these stay those of the right tokens."""
        norms = [
            each
            for part in (self.fuser, *self.refiners)
            for each in part.modules()
            if isinstance(each, nn.BatchNorm1d) and each.training
        ]
        for norm in norms:
            norm.eval()
        memory = self._fuse(tokens)
        for norm in norms:
            norm.train()
        return memory

    def _mixes_samples(self) -> bool:
        refiners = cast("Iterable[Refiner]", self.refiners)
        return self.fuser.mixes_samples or any(each.mixes_samples for each in refiners)


def _of_one_shape(versions: Sequence[Tokens]) -> bool:
    """Whether passes can run as one batch; a given wrong text may have another length, and changed
    tokens may know more."""
    shapes = {
        (
            each.video.shape,
            each.text.shape,
            frozenset((name, x.shape) for name, x in each.texts.items()),
            frozenset(each.extras),
        )
        for each in versions
    }
    return len(shapes) == 1


def _predictions(outputs: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> Predictions:
    logits, spans = outputs["logits"], outputs["spans"]
    named = {*_LAYERED, "saliency", "query_mask"}
    return Predictions(
        logits=logits[-1],
        spans=spans[-1],
        saliency=outputs["saliency"],
        layers=tuple(zip(logits[:-1].unbind(), spans[:-1].unbind(), strict=True)),
        extras={key: x for key, x in outputs.items() if key not in named} | dict(extra),
        query_mask=outputs.get("query_mask"),
    )
