"""`MomentTask` for the models of `models.retrieval`: how a forward pass runs on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.annotations import PostProcessing
from data.errors import UsageError
from models.retrieval import RetrievalModel, create_model
from models.retrieval.decode import Decoding, Window, clip_scores, windows
from models.retrieval.types import Batch, Predictions, StepContext
from training.batch import NARRATIVE
from training.config import LOADED_BY, EvalGroup, ModelGroup
from training.data import Samples
from training.distributed import ALONE, World
from training.predictions import Prediction
from training.task import MomentBatch

__all__ = ["RetrievalTask", "build_model", "decoding_of"]

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RetrievalTask:
    """A retrieval model on a device.

    Args:
        model: already on `device`.
        decoding: how spans become windows.
        precision: "float32", or the autocast type of forward passes.
        compile: whether `torch.compile` works on the training step.
        moments: whether the model was shown moments; if not, it predicts none.
        world: processes that share the gradients.
    """

    def __init__(
        self,
        model: RetrievalModel,
        decoding: Decoding,
        *,
        device: torch.device,
        precision: str = "float32",
        compile: bool = False,
        moments: bool = True,
        world: World = ALONE,
    ) -> None:
        self.model: RetrievalModel = model
        self._decoding, self._moments = decoding, moments
        self._device = device
        self._autocast = PRECISIONS[precision]
        self._step: nn.Module = _TrainingStep(model)
        if compile:
            self._step.compile()
        if world.size > 1:
            # the first process sends its buffers (queues, batch norms) in every step; a frozen
            # language model of a gigabyte is none of those
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]  # torch's only way to say so
                self._step, [f"model.{name}" for name in model.constants]
            )
            # some plug-ins rest in some epochs: their parameters then have no gradient
            self._step = DistributedDataParallel(
                self._step,
                device_ids=[device] if device.type == "cuda" else None,
                find_unused_parameters=True,
            )

    def losses(self, batch: MomentBatch, context: StepContext) -> Mapping[str, Tensor]:
        """See `MomentTask.losses`."""
        with self._precision():
            losses: Mapping[str, Tensor] = self._step(batch.tensors, context)
        return losses

    def after_step(self, context: StepContext) -> None:
        """See `MomentTask.after_step`."""
        self.model.after_step(context)

    def predict(self, batch: MomentBatch) -> Sequence[Prediction]:
        """See `MomentTask.predict`."""
        with self._precision():
            found: Predictions = self.model(batch.tensors)
        clips = batch.tensors.video_mask.sum(dim=1).tolist()
        ranked = self._windows(found, batch, clips) if self._moments else [()] * len(clips)
        saliency = clip_scores(found, self._decoding).tolist()
        return [
            Prediction(each.qid, each.query, each.video_id, moments, each.saliency(scores[:n]))
            for each, moments, scores, n in zip(batch.queries, ranked, saliency, clips, strict=True)
        ]

    def _windows(
        self, found: Predictions, batch: MomentBatch, clips: Sequence[int]
    ) -> Sequence[tuple[Window, ...]]:
        grid_s = [n * each.grid.clip_len_s for n, each in zip(clips, batch.queries, strict=True)]
        return windows(
            found,
            grid_s=grid_s,
            duration_s=[each.grid.duration_s for each in batch.queries],
            clip_len_s=[each.grid.clip_len_s for each in batch.queries],
            how=self._decoding,
        )

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None)


class _TrainingStep(nn.Module):
    """Losses as a forward pass, which is what DDP and `torch.compile` work on."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Weighted loss terms by name."""
        return self.model.losses(batch, context)


def build_model(config: ModelGroup, samples: Samples) -> RetrievalModel:
    """The configured model for the widths of a split's features.

    Raises:
        UsageError: the model cannot be built so; says which options are concerned.
    """
    sample = samples[0]
    sides = {NARRATIVE: sample.narrative.shape[1]} if sample.narrative is not None else {}
    texts = {name: x.shape[1] for name, x in sample.texts.items()}
    carried = {f"side.{name}" for name in sides} | {f"text.{name}" for name in texts}
    carried |= {"events"} if sample.events is not None else set()
    try:
        model = create_model(
            config.name,
            video_dim=sample.video.shape[1],
            text_dim=sample.text.shape[1],
            preset=config.preset,
            plugins=config.plugins,
            side_dims=sides,
            text_dims=texts,
            **config.options,
        )
    except UsageError as error:
        raise UsageError(f"model: {error}") from None
    _check_carried(model, carried, config)
    return model


def _check_carried(model: RetrievalModel, carried: AbstractSet[str], config: ModelGroup) -> None:
    """UsageError where the data lack what the model reads, or have what it does not."""
    chosen = f"model '{config.name}' with plug-ins {', '.join(config.plugins) or 'none'}"
    for need in sorted(model.reads ^ carried):
        option, text = LOADED_BY.get(need), need.removeprefix("text.")
        if text != need and need in carried:
            raise UsageError(
                f"data.other_texts has '{text}', but under these options {chosen} does not read "
                "it; take it out, or change model.options"
            )
        if need in carried:
            raise UsageError(
                f"data.{option}=true, but under these options {chosen} reads none of them; "
                f"set data.{option}=false, or change model.options or model.plugins"
            )
        remedy = (
            f"set data.{option}=true (`pipeline run --stage {option}` writes them)"
            if option
            else f"the trainer can load {', '.join(LOADED_BY)}"
        )
        raise UsageError(f"{chosen} reads '{need}', which the data do not load; {remedy}")


def decoding_of(model: RetrievalModel, config: EvalGroup, post: PostProcessing) -> Decoding:
    """How the spans of a model become windows.

    Args:
        model: its preset says which units it was trained in.
        config: what the user asked for.
        post: what the dataset's public code does before scoring.

    Raises:
        UsageError: windows are to be cut to the range of a dataset that has none.
    """
    asked = config.round_to_clip
    if config.clip_to == "dataset" and post.clamp_s is None:
        raise UsageError(
            "eval.clip_to=dataset, but the public code of this store's dataset cuts to no range "
            "(docs/datasets.md); leave it out, or say eval.clip_to=video"
        )
    return replace(
        model.decoding,
        # the public code cuts to the range of the dataset where a video is shorter, too
        clip_s=post.clamp_s if config.clip_to == "dataset" else None,
        round_to_clip=(post.round_to_s is not None) if asked is None else asked,
        nms_iou=config.nms_iou,
    )
