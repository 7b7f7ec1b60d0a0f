"""Parameters and FLOPs of the models of the family, for `model_sizes.py` and a test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.retrieval import RetrievalModel
from models.retrieval.testing import random_batch

__all__ = ["HEADER", "PUBLIC", "Size", "cells", "measure"]

CLIPS, WORDS = 75, 25

HEADER = (
    "model | trained M | held M | predict GFLOP | train GFLOP | `release` M"
    " | `release` train GFLOP | public M | public train GFLOP"
)

PUBLIC: Mapping[str, tuple[float, float]] = {
    "moment_detr": (4.82, 0.56),
    "qd_detr": (7.59, 1.33),
    "tr_detr": (8.31, 1.11),
    "eatr": (8.97, 0.94),
    "bm_detr": (8.41, 1.75),
    "ld_detr": (12.92, 1.66),
    "uvcom": (18.19, 4.31),
    "cg_detr": (12.62, 2.26),
    "univtg": (43.4, 7.75),
}
"""Parameters in millions and GFLOP of a training sample's forward pass of the public code, as
measured there (specs/retrieval_models.md §8.1)."""


@dataclass(frozen=True)
class Size:
    """What a model costs with the features of QVHighlights, one sample of 75 clips and 25 words.

    Args:
        parameters: all of them.
        trained: those that training changes.
        held: further numbers that it keeps: slow copies, queues, frozen layers, statistics.
        predict: FLOPs of a prediction.
        train: FLOPs of a training step's forward pass, with the extra passes, without losses.
    """

    parameters: int
    trained: int
    held: int
    predict: int
    train: int


def measure(make: Callable[[], RetrievalModel], *, without_numbers: bool = False) -> Size:
    """Count a model. Matrix products and convolutions count, two FLOPs a multiply and add.

    Args:
        make: builds it.
        without_numbers: whether its tensors get no memory; recurrent layers need some.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) if without_numbers else nullcontext():
        model = make()
        parameters = sum(x.numel() for x in model.parameters())
        trained = sum(x.numel() for x in model.parameters() if x.requires_grad)
        held = parameters - trained
        held += sum(x.numel() for x in model.buffers() if x.is_floating_point())
        predict, train = (_flops(model, training=training) for training in (False, True))
        return Size(parameters, trained, held, predict, train)


def _flops(model: RetrievalModel, *, training: bool) -> int:
    widths = {key: model.recipe[key] for key in ("video_dim", "text_dim", "side_dims")}
    batch = random_batch([CLIPS], [WORDS], **widths)
    model.train(training).requires_grad_(False)
    # ways to run attention and recurrent layers that the counter sees into
    with (
        warnings.catch_warnings(action="ignore", category=UserWarning),  # TF32 on Intel's GPUs
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        model.trace(batch, passes=training)
    return int(counter.get_total_flops())


def cells(name: str, fixed: Size, release: Size) -> list[str]:
    """A model's row under `HEADER`, with the presets `fixed` and `release`."""
    public = PUBLIC.get(name)
    return [
        f"`{name}`",
        _million(fixed.trained),
        _million(fixed.held),
        f"{fixed.predict / 1e9:.2f}",
        f"{fixed.train / 1e9:.2f}",
        _million(release.parameters),
        f"{release.train / 1e9:.2f}",
        *([f"{public[0]:.2f}", f"{public[1]:.2f}"] if public else ["–", "–"]),
    ]


def _million(count: int) -> str:
    return f"{count / 1e6:.2f}" if count else "0"
