"""Reads a case of the reference outputs of the public code (tests/golden/retrieval/README.md), and
compares a model of ours with it.

A model's test file has its cases, its loss names and what is special in it. The tests at the end
are the same for every model: a file imports those that hold and names their `golden` and `step`.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
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
from models.retrieval.flow import Trace
from models.retrieval.official import official_state_dict
from models.retrieval.types import Batch, Predictions, StepContext, Targets

HERE = Path(__file__).parent / "retrieval"
CASES = ("a", "b", "c", "q")
STEPS = (("b", "train"), ("q", "train"))
"""Cases and variants of a training step that most models have."""
LOOPS = {"ld_detr_loops3": ("ld_detr", {"loops": 3})}
"""Folders that are another model with options of ours."""
STILL = {"dropout": 0.0, "input_dropout": 0.0, "droppath": 0.0, "drop_rate": 0.0}
"""Public options of the training steps, in which nothing is random."""
BUILT_IN = {"ld_detr": {"dropout": 0.0, "input_dropout": 0.0}}
"""The same as options of ours, where the public code has none for them."""


@dataclass(frozen=True)
class Golden:
    """One case: what went in, what the public code gave.

    Args:
        meta: the JSON of the case.
        tensors: what the public code gave.
        weights: in the public layout.
        inputs: under their public names.
        batch: the same as ours.
        variant: which training step.
    """

    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]
    inputs: dict[str, Any]
    batch: Batch
    variant: str = "train"

    @property
    def step(self) -> dict[str, Any]:
        """Losses, weights, matches and gradients of the training step."""
        return self.meta["train"][self.variant]  # type: ignore[no-any-return]

    def load(self, **changes: Any) -> RetrievalModel:
        """Our model with the public weights; `changes` are public options."""
        return self._load(changes, {})

    def in_training(self, **changes: Any) -> RetrievalModel:
        """As `load`, in train mode with nothing random."""
        return self._load(STILL | changes, BUILT_IN).train()

    def _load(self, changes: dict[str, Any], built_in: dict[str, Any]) -> RetrievalModel:
        name, ours = LOOPS.get(self.meta["model"], (self.meta["model"], {}))
        options = self.meta["official_options"] | changes
        checkpoint = {"model": self.weights, "opt": options}
        return load_official(name, checkpoint, **ours, **built_in.get(name, {}))


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


def golden_of(*models: str, cases: Sequence[str] = CASES) -> Any:
    """The fixture `golden`: every case of the models, one after the other."""
    params = [(model, case) for model in models for case in cases]

    @pytest.fixture(params=params, ids=[_id(models, *each) for each in params])
    def golden(request: pytest.FixtureRequest) -> Golden:
        return read(*request.param, request)

    return golden


def step_of(*models: str, steps: Sequence[tuple[str, str]] = STEPS) -> Any:
    """The fixture `step`: every training step (case, variant) of the models."""
    params = [(model, *each) for model in models for each in steps]

    @pytest.fixture(params=params, ids=[_id(models, *each) for each in params])
    def step(request: pytest.FixtureRequest) -> Golden:
        model, case, variant = request.param
        return replace(read(model, case, request), variant=variant)

    return step


def _id(models: Sequence[str], model: str, case: str, variant: str = "train") -> str:
    parts = ([model] if len(models) > 1 else []) + [case]
    return "-".join([*parts, variant] if variant != "train" else parts)


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


def check_predictions(
    found: Predictions,
    golden: Golden,
    prefix: str,
    *,
    atol: float = 2e-5,
    real: Tensor | None = None,
) -> None:
    """What every model finds: logits and spans of all decoder layers that the public code keeps,
    and saliency, under a wrong text too where it has one for every sample.

    Args:
        found: ours.
        golden: the case.
        prefix: `eval`, or the variant of the training step.
        atol: absolute tolerance.
        real: (B, L) bool, clips that exist; None takes those of the batch.
    """
    gold, real = golden.tensors, golden.batch.video_mask if real is None else real
    layers = {f"{prefix}.aux_outputs.{i}": each for i, each in enumerate(found.layers)}
    if not any(f"{key}.pred_spans" in gold for key in layers):  # the last one alone is kept
        layers = {}
    for key, (logits, spans) in {**layers, prefix: (found.logits, found.spans)}.items():
        close(logits, gold[f"{key}.pred_logits"], atol=atol)
        close(spans, gold[f"{key}.pred_spans"], atol=atol)
    close(found.saliency, gold[f"{prefix}.saliency_scores"], real, atol=atol)
    if f"{prefix}.saliency_scores_neg" in gold and f"{prefix}.real_neg_mask" not in gold:
        wrong = gold[f"{prefix}.saliency_scores_neg"]
        close(found.extras["saliency_negative"], wrong, real, atol=atol)


def check_trace(trace: Trace, golden: Golden, *, atol: float = 2e-5) -> None:
    """Predictions, decoder states, anchors and memory, as far as the public code has them."""
    gold, memory, decoded = golden.tensors, trace.memory, trace.decoded
    check_predictions(trace.predictions, golden, "eval", atol=atol)
    assert decoded is not None
    states, whole = gold["eval.hs"], gold["eval.memory"]
    if "eval.pred_event_spans" in gold and "event_states" in decoded.extras:
        close(decoded.extras["event_states"], states[0], atol=atol)  # the query of the events
        states = states[1:]
    close(decoded.states, states, atol=atol)
    assert (decoded.references is None) == ("eval.references" not in gold)
    if decoded.references is not None:
        close(decoded.references, gold["eval.references"], atol=atol)
    assert (memory.global_token is None) == ("eval.memory_global" not in gold)
    if memory.global_token is not None:
        close(memory.global_token, gold["eval.memory_global"], atol=atol)
    if whole.shape[1] == memory.clip.shape[1]:
        close(memory.clip, whole, memory.clip_mask, atol=atol)
    else:  # clips and words
        close(memory.kv, whole, memory.kv_mask, atol=atol)


def check_losses(
    values: Mapping[str, Tensor], golden: Golden, names: Mapping[str, str], views: Sequence[str]
) -> Tensor:
    """Every loss of ours is a loss of the public code, and their sum is its total.

    Args:
        values: ours, weighted.
        golden: the case.
        names: public loss of each of ours without `loss_`, `+` between several on either side;
            losses of the moments have equal names and need not be given.
        views: what stands before a name for each view that the public code averages over.

    Returns:
        The total, to take gradients of.
    """
    losses, weights = golden.step["losses"], golden.step["weights"]
    of_moments = (key for key in values if key.split("_")[0] in ("span", "giou", "label"))
    names = {key: key for key in of_moments} | dict(names)
    left, used = set(values), set()
    for ours, theirs in names.items():
        expected = 0.0
        for name in theirs.split(" + "):
            public = f"loss_{name}" if f"loss_{name}" in weights else name
            used.add(public)
            expected += weights[public] * sum(losses[view + public] for view in views) / len(views)
        found = sum(values[name].item() for name in ours.split(" + "))
        assert found == pytest.approx(expected, rel=1e-4), ours
        left -= set(ours.split(" + "))
    assert not left, "losses of ours that are compared with nothing"
    assert used == losses.keys() & weights.keys(), "losses of the public code that ours have not"
    total = torch.stack(list(values.values())).sum()
    assert total.item() == pytest.approx(golden.step["total"], rel=1e-4)
    return total


def check_step(
    model: RetrievalModel,
    golden: Golden,
    names: Mapping[str, str],
    *,
    batch: Batch | None = None,
    context: StepContext | None = None,
    views: Sequence[str] = ("",),
) -> None:
    """A training step: every loss, their sum, and the gradients of parameters and features.

    Args:
        model: ours, of `Golden.in_training`.
        golden: the case.
        names: as `check_losses`.
        batch: with more than the case's own, e.g. a given wrong text.
        context: where training stands.
        views: as `check_losses`.
    """
    batch = with_gradients(batch or golden.batch)
    total = check_losses(model.losses(batch, context), golden, names, views)
    total.backward()
    check_gradients(model, golden.step)
    check_input_gradients(batch, golden)


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


def check_input_gradients(batch: Batch, golden: Golden) -> None:
    """Gradients of the features, after `backward` through a batch of `with_gradients`; the case of
    full size keeps none. Batch statistics cost digits (the page, Tolerance)."""
    limit = 1e-3 if golden.meta["model"] in ("ld_detr", "ld_detr_loops3") else 1e-4
    for x, names in ((batch.video, ("src_vid", "video")), (batch.text, ("src_txt",))):
        for name in names:
            public = golden.tensors.get(f"{golden.variant}.grad_{name}")
            if public is not None:
                assert x.grad is not None
                assert (x.grad - public).abs().max() <= limit * public.abs().max(), name


def with_gradients(batch: Batch) -> Batch:
    """The batch with features that take a gradient; word ids take none."""
    video, text = (
        x.clone().requires_grad_(x.is_floating_point()) for x in (batch.video, batch.text)
    )
    return replace(batch, video=video, text=text)


def check_matches(
    model: RetrievalModel,
    found: Sequence[tuple[Tensor, Tensor]],
    batch: Batch,
    calls: Sequence[Any],
) -> None:
    """Which query answers for which moment.

    Args:
        model: ours.
        found: logits and spans of each call of the matcher.
        batch: with the moments.
        calls: of the public matcher; per sample queries and moments.
    """
    targets = batch.targets
    assert targets is not None
    for (logits, spans), call in zip(found, calls, strict=True):
        matched = model.criterion.matcher(logits, spans, targets.spans, targets.span_mask)
        for row, (queries, moments) in zip(matched.tolist(), call, strict=True):
            assert {moment: row[moment] for moment in moments} == dict(
                zip(moments, queries, strict=True)
            )


def published(shared: Path, file: str) -> dict[str, str]:
    """Names and shapes of the published model's tensors (specs/model_keys)."""
    lines = (shared / "specs" / "model_keys" / file).read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines if " (" in line)


def public_shapes(model: RetrievalModel) -> dict[str, str]:
    """Names and shapes of ours in the public layout."""
    state = official_state_dict(model, MODELS.get(model.recipe["name"]).official)
    return {key: str(tuple(x.shape)) for key, x in state.items()}


@torch.no_grad()
def test_matched_indices_equal_the_public_code(step: Golden) -> None:
    model = step.in_training()
    found = model(step.batch)
    last, *earlier = step.step["matched_indices_in_call_order"]
    if "eval.pred_event_spans" in step.tensors:
        earlier = earlier[1:]  # the second call matches events
    last_first = ((found.logits, found.spans), *found.layers)
    check_matches(model, last_first, step.batch, (last, *earlier))


def test_public_weights_survive_the_way_there_and_back(golden: Golden) -> None:
    model = golden.load()
    layout = MODELS.get(model.recipe["name"]).official
    back, unused = official_state_dict(model, layout), layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)
