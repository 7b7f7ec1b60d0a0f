"""The `release` preset computes what the public code computes (tests/golden/retrieval/README.md).

Tolerances are those of that page; the public numbers are float32 on a CPU.
"""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.retrieval import MODELS, RetrievalModel, load_official
from models.retrieval.official import official_state_dict
from models.retrieval.types import Batch, Predictions, StepContext, Targets

HERE = Path(__file__).parent / "retrieval"
CASES = ["a", "b", "c", "q"]


@dataclass(frozen=True)
class Golden:
    """One case: what went in, what the public code gave."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]
    batch: Batch

    def load(self, **changes: Any) -> RetrievalModel:
        options = self.meta["official_options"] | changes
        return load_official(self.meta["model"], {"model": self.weights, "opt": options})


@pytest.fixture(scope="module")
def fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_fill", HERE / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest, fill: ModuleType) -> Golden:
    return read("qd_detr", request.param, request, fill)


def read(model: str, case: str, request: pytest.FixtureRequest, fill: ModuleType) -> Golden:
    folder = HERE / model
    if not (folder / f"{case}.json").exists():  # the full-size case stays outside the repository
        folder = request.getfixturevalue("shared") / "golden" / "retrieval" / model
    meta = json.loads((folder / f"{case}.json").read_text())
    empty = {
        key: torch.zeros(shape, dtype=getattr(torch, dtype))
        for key, (shape, dtype) in meta["state_dict"].items()
    }
    weights = fill.fill_state_dict(empty, meta["tied"], meta["weight_seed"])
    inputs = fill.make_inputs(meta["inputs"])
    return Golden(meta, load_file(folder / f"{case}.safetensors"), weights, batch_of(inputs))


def batch_of(inputs: dict[str, Any]) -> Batch:
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
    return Batch(
        video=inputs["src_vid"],
        video_mask=inputs["src_vid_mask"].bool(),
        text=inputs["src_txt"],
        text_mask=inputs["src_txt_mask"].bool(),
        targets=targets,
    )


def close(ours: Tensor, public: Tensor, mask: Tensor | None = None) -> None:
    if mask is not None:
        ours, public = ours[mask], public[mask]
    torch.testing.assert_close(ours, public, atol=2e-5, rtol=1e-5)


def check_predictions(
    ours: Predictions, gold: dict[str, Tensor], prefix: str, batch: Batch
) -> None:
    close(ours.logits, gold[f"{prefix}.pred_logits"])
    close(ours.spans, gold[f"{prefix}.pred_spans"])
    close(ours.saliency, gold[f"{prefix}.saliency_scores"], batch.video_mask)
    close(ours.extras["saliency_negative"], gold[f"{prefix}.saliency_scores_neg"], batch.video_mask)


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    check_predictions(trace.predictions, gold, "eval", batch)
    for layer, (logits, spans) in enumerate(trace.predictions.layers):
        close(logits, gold[f"eval.aux_outputs.{layer}.pred_logits"])
        close(spans, gold[f"eval.aux_outputs.{layer}.pred_spans"])
    assert trace.decoded is not None
    assert trace.decoded.references is not None
    assert trace.memory.global_token is not None
    close(trace.decoded.states, gold["eval.hs"])
    close(trace.decoded.references, gold["eval.references"])
    close(trace.memory.global_token, gold["eval.memory_global"])
    close(trace.memory.clip, gold["eval.memory"], batch.video_mask)


@pytest.mark.parametrize("case", ["b", "q"])
def test_a_training_step_equals_the_public_code(
    case: str, request: pytest.FixtureRequest, fill: ModuleType
) -> None:
    golden = read("qd_detr", case, request, fill)
    step, batch = golden.meta["train"]["train"], golden.batch
    model = golden.load(dropout=0.0, input_dropout=0.0).train()
    check_predictions(model(batch), golden.tensors, "train", batch)

    losses = model.losses(batch, StepContext())
    values = {name: loss.item() for name, loss in losses.items()}
    weights = step["weights"]
    saliency = values["margin"] + values["rank"] + values["negative_pair"]
    assert saliency == pytest.approx(step["losses"]["loss_saliency"], rel=1e-4)
    for ours in ("span", "giou", "label", "span_0", "giou_0", "label_0"):
        public = step["losses"][f"loss_{ours}"] * weights[f"loss_{ours}"]
        assert values[ours] == pytest.approx(public, rel=1e-4), ours
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)

    total.backward()
    layout = MODELS.get("qd_detr").official
    norms = {
        str(layout.public_name(name)): float(p.grad.norm())
        for name, p in model.named_parameters()
        if p.grad is not None and not name.startswith("criterion")
    }
    assert math.hypot(*norms.values()) == pytest.approx(step["grad_norm"], rel=1e-3)
    public = {name: norm for name, norm in step["grad_norm_per_parameter"].items() if norm}
    assert norms == pytest.approx(norms | public, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("case", ["b", "q"])
def test_matched_indices_equal_the_public_code(
    case: str, request: pytest.FixtureRequest, fill: ModuleType
) -> None:
    golden = read("qd_detr", case, request, fill)
    model, targets = golden.load(), golden.batch.targets
    assert targets is not None
    predictions = model(golden.batch)
    public = golden.meta["train"]["train"]["matched_indices_in_call_order"]
    last_first = ((predictions.logits, predictions.spans), *predictions.layers)
    for (logits, spans), call in zip(last_first, public, strict=True):
        matched = model.criterion.matcher(logits, spans, targets.spans, targets.span_mask)
        for row, (queries, moments) in zip(matched.tolist(), call, strict=True):
            assert {moment: row[moment] for moment in moments} == dict(
                zip(moments, queries, strict=True)
            )


def test_public_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    model = golden.load()
    layout = MODELS.get("qd_detr").official
    back = official_state_dict(model, layout)
    unused = layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)
