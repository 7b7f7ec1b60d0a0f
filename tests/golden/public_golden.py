"""Reads a case of the reference outputs of the public code (tests/golden/retrieval/README.md)."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.retrieval import MODELS, RetrievalModel, load_official
from models.retrieval.types import Batch, Predictions, Targets

HERE = Path(__file__).parent / "retrieval"


@dataclass(frozen=True)
class Golden:
    """One case: what went in, what the public code gave."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]
    inputs: dict[str, Any]
    batch: Batch

    def load(self, name: str | None = None, **changes: Any) -> RetrievalModel:
        """Our model with the public weights; `changes` are public options."""
        options = self.meta["official_options"] | changes
        name = name or self.meta["model"]
        return load_official(name, {"model": self.weights, "opt": options})


@cache
def fill_module() -> ModuleType:
    """`fill.py`, which remakes weights and inputs by formula."""
    spec = importlib.util.spec_from_file_location("golden_fill", HERE / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(model: str, case: str, request: pytest.FixtureRequest) -> Golden:
    """A case from the repository, or from the shared folder if it is not in the repository."""
    folder = HERE / model
    if not (folder / f"{case}.json").exists():
        folder = request.getfixturevalue("shared") / "golden" / "retrieval" / model
    meta = json.loads((folder / f"{case}.json").read_text())
    empty = {
        key: torch.zeros(shape, dtype=getattr(torch, dtype))
        for key, (shape, dtype) in meta["state_dict"].items()
    }
    fill = fill_module()
    weights = fill.fill_state_dict(empty, meta["tied"], meta["weight_seed"])
    tensors = load_file(folder / f"{case}.safetensors")
    if "word_size" in meta["inputs"]:
        inputs = fill.make_word_inputs(meta["inputs"])
        return Golden(meta, tensors, weights, inputs, batch_of_words(inputs))
    inputs = fill.make_inputs(meta["inputs"])
    return Golden(meta, tensors, weights, inputs, batch_of(inputs, meta["inputs"]))


def batch_of(inputs: Mapping[str, Any], made_by: Mapping[str, Any]) -> Batch:
    """Our batch of the public inputs."""
    spans = torch.nn.utils.rnn.pad_sequence(inputs["spans"], batch_first=True)
    counts = torch.tensor([len(each) for each in inputs["spans"]])
    targets = Targets(
        spans=spans,
        span_mask=torch.arange(spans.shape[1]) < counts[:, None],
        saliency=inputs["saliency_all_labels"],
        positive=inputs["saliency_pos_labels"],
        negative=inputs["saliency_neg_labels"],
        pair_mask=torch.ones_like(inputs["saliency_pos_labels"], dtype=torch.bool),
        in_moment=inputs["relevant_clips"].bool(),
    )
    sources = [each.rsplit("_", 2)[0] for each in made_by["vids"]]
    return Batch(
        video=inputs["src_vid"],
        video_mask=inputs["src_vid_mask"].bool(),
        text=inputs["src_txt"],
        text_mask=inputs["src_txt_mask"].bool(),
        video_ids=torch.tensor([sources.index(each) for each in sources]),
        targets=targets,
    )


def batch_of_words(inputs: Mapping[str, Any]) -> Batch:
    """Our batch of the public inputs of a model of word ids: one moment, from the start of its
    first to the end of its last clip."""
    mask, length = inputs["video_mask"].bool(), inputs["video_lengths"]
    start, end = inputs["start"] / length, (inputs["end"] + 1) / length
    clip = torch.arange(mask.shape[1])
    inside = (clip >= inputs["start"][:, None]) & (clip <= inputs["end"][:, None])
    nothing = torch.zeros(len(mask), 1, dtype=torch.int64)
    targets = Targets(
        spans=torch.stack([(start + end) / 2, end - start], dim=-1).unsqueeze(1),
        span_mask=torch.ones(len(mask), 1, dtype=torch.bool),
        saliency=inside.float(),
        positive=nothing,
        negative=nothing,
        pair_mask=nothing.bool(),
        in_moment=inside,
    )
    return Batch(
        video=inputs["video"],
        video_mask=mask,
        text=inputs["word_ids"],
        text_mask=inputs["query_mask"].bool(),
        targets=targets,
    )


def close(ours: Tensor, public: Tensor, mask: Tensor | None = None, *, atol: float = 2e-5) -> None:
    """Equal within the tolerance of the page, where `mask`."""
    if mask is not None:
        ours, public = ours[mask], public[mask]
    torch.testing.assert_close(ours, public, atol=atol, rtol=1e-5)


def check_layers(found: Predictions, golden: Golden, *, atol: float = 2e-5) -> None:
    """Logits and spans of all decoder layers."""
    layers = {f"eval.aux_outputs.{i}": each for i, each in enumerate(found.layers)}
    for prefix, (logits, spans) in {**layers, "eval": (found.logits, found.spans)}.items():
        close(logits, golden.tensors[f"{prefix}.pred_logits"], atol=atol)
        close(spans, golden.tensors[f"{prefix}.pred_spans"], atol=atol)


def check_gradients(model: RetrievalModel, step: Mapping[str, Any]) -> None:
    """Norm of the whole gradient, and of every parameter's, after `backward`."""
    layout = MODELS.get(model.recipe["name"]).official
    norms = {
        str(layout.public_name(name)): float(p.grad.norm())
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    assert math.hypot(*norms.values()) == pytest.approx(step["grad_norm"], rel=1e-3)
    public = {name: norm for name, norm in step["grad_norm_per_parameter"].items() if norm}
    assert norms == pytest.approx(norms | public, rel=1e-3, abs=1e-4)


def check_input_gradients(batch: Batch, golden: Golden, step: str = "train") -> None:
    """Gradients of the features, after `backward` through a batch of `with_gradients`."""
    for x, name in ((batch.video, "grad_src_vid"), (batch.text, "grad_src_txt")):
        assert x.grad is not None
        public = golden.tensors.get(f"{step}.{name}")
        if public is not None:  # not kept for `q`
            assert (x.grad - public).abs().max() <= 1e-3 * public.abs().max(), name


def with_gradients(batch: Batch) -> Batch:
    """The batch with features that take a gradient."""
    video, text = (x.clone().requires_grad_() for x in (batch.video, batch.text))
    return replace(batch, video=video, text=text)


def check_matches(model: RetrievalModel, golden: Golden, variant: str = "train") -> None:
    """Which query answers for which moment, in every layer."""
    targets = golden.batch.targets
    assert targets is not None
    found = model(golden.batch)
    public = golden.meta["train"][variant]["matched_indices_in_call_order"]
    last_first = ((found.logits, found.spans), *found.layers)
    for (logits, spans), call in zip(last_first, public, strict=True):
        matched = model.criterion.matcher(logits, spans, targets.spans, targets.span_mask)
        for row, (queries, moments) in zip(matched.tolist(), call, strict=True):
            assert {moment: row[moment] for moment in moments} == dict(
                zip(moments, queries, strict=True)
            )
