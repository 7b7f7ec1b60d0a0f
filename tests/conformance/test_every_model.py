"""What every model of the family must do, with every preset and plug-in. A new model or plug-in is
tested here by being registered."""

from __future__ import annotations

import copy
import io
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.errors import UsageError
from models.retrieval import MODELS, PLUGINS, PRESETS, RetrievalModel, create_model
from models.retrieval.decode import ranked
from models.retrieval.official import fill, official_state_dict
from models.retrieval.parts.spans import overlap, start_end
from models.retrieval.testing import alone, random_batch, take
from models.retrieval.types import Batch, Predictions, Side, StepContext

VIDEO, TEXT, SIDES, TEXTS = 18, 12, {"narrative": 12}, {"llama": 10}
# Options of those models that have them. Of more layers or rounds the gradients of what stands at
# the beginning, or tells like queries apart, come near rounding.
NARROW: dict[str, Any] = {
    "hidden": 32,
    "heads": 4,
    "feedforward": 48,
    "slot_hidden": 48,
    "similarity_hidden": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "mean_rounds": 1,
    "queue_length": 64,
}
STILL = {"dropout": 0.0, "input_dropout": 0.0, "drop_path": 0.0}
# A small language model; its weights are random where they would come from a file.
LLM = {"numbers": "float32", "llm_width": 32, "llm_heads": 4, "llm_hidden": 48, "layers": (0, 1)}
TRIED = {"llm_refiner": LLM | {"weights": "random"}}


@dataclass(frozen=True)
class Case:
    name: str
    preset: Any
    plugin: str | None
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        chosen = "".join(f"-{name}={value}" for name, value in self.options)
        return f"{self.name}-{self.preset}-{self.plugin or 'plain'}{chosen}"

    def build(self, **options: Any) -> RetrievalModel:
        plugins = {self.plugin: TRIED.get(self.plugin, {})} if self.plugin else {}
        options = dict(self.options) | options
        return narrow(self.name, preset=self.preset, plugins=plugins, **options)

    def build_with(self, plugin_options: dict[str, Any]) -> RetrievalModel:
        """The same with other options of the plug-in."""
        assert self.plugin is not None
        options = TRIED.get(self.plugin, {}) | plugin_options
        return narrow(self.name, preset=self.preset, plugins={self.plugin: options})


def narrow(name: str, **options: Any) -> RetrievalModel:
    known = MODELS.get(name).options.model_fields
    weights = {} if options.get("preset") == "release" else {"weights": "random"}
    small = NARROW | STILL | LLM | weights
    given = {key: value for key, value in small.items() if key in known}
    torch.manual_seed(0)
    dims: dict[str, Any] = {"video_dim": VIDEO, "text_dim": TEXT}
    return create_model(name, side_dims=SIDES, text_dims=TEXTS, **(dims | given | options))


PAIRS = [(m, g) for m in MODELS for g in PLUGINS if m not in PLUGINS.get(g).conflicts]
REFUSED = [(m, g) for m in MODELS for g in PLUGINS if m in PLUGINS.get(g).conflicts]
PLAIN = [Case(m, p, None) for m in MODELS for p in PRESETS]
FIXED = [Case(m, "fixed", g) for m, g in [(m, None) for m in MODELS] + PAIRS]
# Options by which a model reads what it does not read without them.
FIXED.append(Case("lmr", "fixed", None, (("description_query", "other"),)))
# A plug-in is tried with every base where the two could get in each other's way; where a part
# fails or holds by itself, every base and every plug-in is tried once.
ONCE = [case for case in FIXED if case.plugin is None]
ONCE += list({case.plugin: case for case in reversed(FIXED) if case.plugin}.values())
every_case = pytest.mark.parametrize("case", dict.fromkeys(PLAIN + FIXED), ids=str)
every_preset = pytest.mark.parametrize("case", dict.fromkeys(PLAIN + ONCE), ids=str)
every_fixed = pytest.mark.parametrize("case", FIXED, ids=str)
every_part = pytest.mark.parametrize("case", ONCE, ids=str)
every_model = pytest.mark.parametrize("name", list(MODELS))
every_pair = pytest.mark.parametrize(("name", "plugin"), PAIRS)


def ragged(**options: Any) -> Batch:
    lengths, words = [11, 7, 9, 3], [5, 2, 4, 1]
    widths: dict[str, Any] = {"video_dim": VIDEO, "text_dim": TEXT}
    widths |= {"side_dims": SIDES, "text_dims": TEXTS}
    return random_batch(lengths, words, moments=2, **widths, **options)


def equal(a: Predictions, b: Predictions, clips: int) -> None:
    """The same for `clips` clips; with a query for each clip, also for so many queries."""
    queries = a.logits.shape[1] if a.query_mask is None else clips
    for x, y in (
        (a.logits[:, :queries], b.logits[:, :queries]),
        (a.spans[:, :queries], b.spans[:, :queries]),
        (a.saliency[:, :clips], b.saliency[:, :clips]),
        *(
            (x, y)
            for one, two in zip(a.layers, b.layers, strict=True)
            for x, y in zip(one, two, strict=True)
        ),
    ):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-5)


@every_preset
@torch.no_grad()
def test_predictions_have_the_documented_shapes_and_ranges(case: Case) -> None:
    batch = ragged()
    found = case.build().eval()(batch)
    queries = found.logits.shape[1]
    assert found.logits.shape == (4, queries, 2)
    assert found.spans.shape == (4, queries, 2)
    assert found.saliency.shape == batch.video_mask.shape
    # Only public code lets windows leave the video, and that only without a decoder.
    if found.query_mask is None or case.preset != "release":
        assert found.spans.min() >= 0
        assert found.spans.max() <= 1
    for logits, spans in found.layers:
        assert logits.shape == found.logits.shape
        assert spans.shape == found.spans.shape


@every_fixed
@torch.no_grad()
def test_a_sample_alone_gives_what_it_gives_beside_longer_ones(case: Case) -> None:
    model, batch = case.build().eval(), ragged()
    together = model(batch)
    for row, clips in enumerate(batch.video_mask.sum(1).tolist()):
        by_itself = model(alone(batch, row))
        beside = Predictions(
            together.logits[row : row + 1],
            together.spans[row : row + 1],
            together.saliency[row : row + 1],
            tuple((a[row : row + 1], b[row : row + 1]) for a, b in together.layers),
        )
        equal(by_itself, beside, clips)


@every_fixed
@torch.no_grad()
def test_what_lies_in_padding_changes_nothing(case: Case) -> None:
    model, batch = case.build().eval(), ragged()
    noisy = replace(
        batch,
        video=torch.where(batch.video_mask.unsqueeze(-1), batch.video, torch.randn(VIDEO)),
        text=torch.where(batch.text_mask.unsqueeze(-1), batch.text, torch.randn(TEXT)),
        texts={
            name: Side(torch.where(x.mask.unsqueeze(-1), x.x, torch.randn(TEXTS[name])), x.mask)
            for name, x in batch.texts.items()
        },
    )
    equal(model(noisy), model(batch), clips=3)


@every_fixed
@torch.no_grad()
def test_samples_in_another_order_give_the_same_in_that_order(case: Case) -> None:
    model, batch, order = case.build().eval(), ragged(), [2, 0, 3, 1]
    there, here = model(take(batch, order)), model(batch)
    moved = Predictions(
        here.logits[order],
        here.spans[order],
        here.saliency[order],
        tuple((a[order], b[order]) for a, b in here.layers),
    )
    equal(there, moved, clips=3)


@every_preset
@torch.no_grad()
def test_fusers_and_refiners_in_which_samples_see_each_other_say_so(case: Case) -> None:
    model, batch = case.build().train(), ragged()
    if any(part.mixes_samples for part in (model.fuser, *model.refiners)):
        return
    found = []
    for others in (batch.video[1:], -batch.video[1:]):
        torch.manual_seed(0)
        beside = replace(batch, video=torch.cat([batch.video[:1], others]))
        found.append(model.trace(beside, passes=False).memory)
    assert torch.equal(found[0].clip[0], found[1].clip[0])
    assert torch.equal(found[0].kv[0], found[1].kv[0])


@every_case
def test_gradients_reach_every_parameter(case: Case) -> None:
    model, family = case.build().train(), MODELS.get(case.name)
    inert = (*family.inert, *family.inert_in.get(case.preset, ()))
    awake = PLUGINS.get(case.plugin).wakes if case.plugin else ()
    inert += PLUGINS.get(case.plugin).inert if case.plugin else ()
    learned = dict(model.named_parameters())
    # a slow copy is moved by no gradient
    learned = {name: each for name, each in learned.items() if each.requires_grad}
    silent = {name for name in learned if any(re.fullmatch(pattern, name) for pattern in inert)}
    silent -= {name for name in silent if any(re.fullmatch(pattern, name) for pattern in awake)}
    reached: set[str] = set()
    torch.manual_seed(1)  # the same changes, whatever was drawn while building
    for _ in range(4):  # where queries happen to be alike, what tells them apart gets next to none
        reached |= {name for name, size in gradients_beside(model).items() if size > 1e-6}
        if reached == learned.keys() - silent:
            return
    missed = sorted(learned.keys() - silent - reached)
    pytest.fail(f"declared inert and reached: {sorted(reached & silent)}; not reached: {missed}")


def gradients_beside(model: RetrievalModel) -> dict[str, float]:
    """Largest entry of every gradient at weights near those of the model, which stay."""
    near = copy.deepcopy(model)
    with torch.no_grad():  # parameters that start at zero would hide those behind them
        for parameter in near.parameters():
            if parameter.numel() > 1:  # a temperature near zero would drown the others
                parameter += 0.1 * torch.randn_like(parameter)
    torch.stack(list(near.losses(ragged(), StepContext()).values())).sum().backward()
    found = {}
    for name, parameter in near.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            found[name] = float(parameter.grad.abs().max())
    return found


@every_case
def test_every_loss_is_named_finite_and_in_the_sum_that_is_minimised(case: Case) -> None:
    model = case.build().train()
    losses = model.losses(ragged(), StepContext())
    terms = dict(model.criterion.terms.items())
    assert terms.keys() <= losses.keys()
    for name, loss in losses.items():
        assert loss.shape == (), name
        assert loss.isfinite(), name
        term = terms[re.sub(r"_\d+$", "", name)]
        assert loss.requires_grad == term.differentiable, name
        assert term.weight != 0


@every_part
def test_every_weight_of_a_loss_that_is_not_zero_counts_in_the_sum(case: Case) -> None:
    """A public release listed losses whose weights nothing read."""
    batch, total = ragged(), torch.zeros(())
    chosen = case.build().recipe
    where = chosen["plugins"][case.plugin] if case.plugin else chosen
    weights = [k for k, x in where.items() if re.fullmatch(r".*_(weight|coef)", k) and x]
    for changed in (None, *weights):
        twice = {changed: 2 * where[changed]} if changed else {}
        model = case.build(**twice) if not case.plugin else case.build_with(twice)
        torch.manual_seed(1)
        losses = model.train().losses(batch, StepContext())
        found = torch.stack(list(losses.values())).double().sum().detach()
        assert changed is None or abs(found - total) > 1e-6, f"{changed} does not count"
        total = total if changed else found


@every_preset
def test_a_model_comes_back_from_its_recipe_and_state(case: Case) -> None:
    model, batch, file = case.build().eval(), ragged(), io.BytesIO()
    torch.save({"recipe": model.recipe, "state": model.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = create_model(**saved["recipe"]).eval()
    again.load_state_dict(saved["state"])
    with torch.no_grad():
        assert torch.equal(again(batch).spans, model(batch).spans)
    assert again.recipe == model.recipe


@every_model
def test_the_public_layout_has_one_place_for_every_parameter(name: str) -> None:
    model, layout = narrow(name, preset="release"), MODELS.get(name).official
    public = official_state_dict(model, layout)
    assert len(public) == len(model.state_dict()) + len(layout.unused(model.recipe))
    torch.manual_seed(1)
    other = create_model(**model.recipe)
    fill(other, layout, public)
    for (key, ours), theirs in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key


@every_pair
@torch.no_grad()
def test_a_plugin_that_is_off_equals_one_that_is_absent(name: str, plugin: str) -> None:
    absent = narrow(name).eval()
    off = narrow(name, plugins={plugin: dict(PLUGINS.get(plugin).off)}).eval()
    state, batch = off.state_dict(), ragged()
    assert state.keys() == absent.state_dict().keys()
    assert all(torch.equal(state[key], x) for key, x in absent.state_dict().items())
    assert torch.equal(off(batch).logits, absent(batch).logits)


@every_pair
@torch.no_grad()
def test_a_plugin_keeps_the_weights_of_the_base_and_changes_what_it_gives(
    name: str, plugin: str
) -> None:
    plugins = {plugin: TRIED.get(plugin, {})}
    absent, present = narrow(name).eval(), narrow(name, plugins=plugins).eval()
    state = present.state_dict()
    assert all(torch.equal(state[key], x) for key, x in absent.state_dict().items())
    if PLUGINS.get(plugin).stage == "criterion":
        batch = ragged()
        assert torch.equal(present(batch).logits, absent(batch).logits)
        assert present.losses(batch).keys() - absent.losses(batch).keys()
    else:
        assert not torch.allclose(present(ragged()).logits, absent(ragged()).logits, atol=1e-4)


@pytest.mark.parametrize(("name", "plugin"), REFUSED)
def test_a_plugin_that_does_not_go_with_a_model_is_refused_with_the_reason(
    name: str, plugin: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(PLUGINS.get(plugin).conflicts[name])):
        narrow(name, plugins={plugin: TRIED.get(plugin, {})})


@pytest.mark.parametrize("plugin", list(PLUGINS))
def test_a_plugin_that_does_not_go_with_another_is_refused_whichever_comes_first(
    plugin: str,
) -> None:
    conflicts = PLUGINS.get(plugin).conflicts
    assert conflicts.keys() <= {*MODELS, *PLUGINS}, "a conflict with something unknown"
    for other in conflicts.keys() & set(PLUGINS):
        name = next(m for m in MODELS if {(m, plugin), (m, other)} <= set(PAIRS))
        for order in ((plugin, other), (other, plugin)):
            with pytest.raises(UsageError, match=re.escape(conflicts[other])):
                narrow(name, plugins={each: TRIED.get(each, {}) for each in order})


def small(lengths: list[int], words: list[int], **options: Any) -> Batch:
    return random_batch(lengths, words, side_dims=SIDES, text_dims=TEXTS, **options)


EDGES = {
    "query without words": small([6, 6], [0, 3]),
    "no query has words": small([6, 6], [0, 0]),
    "one clip": small([1, 1], [3, 2]),
    "one sample": small([6], [3]),
    "one video in the whole batch": replace(
        small([6, 6], [3, 3]), video_ids=torch.zeros(2, dtype=torch.int64)
    ),
    "no video ids": replace(small([6, 6], [3, 3]), video_ids=None),
}


@pytest.mark.parametrize("edge", list(EDGES))
@every_part
def test_edges_train_without_nan(case: Case, edge: str) -> None:
    check_step(case.build().train(), EDGES[edge])


def whole(batch: Batch) -> Batch:
    assert batch.targets is not None
    clips = torch.arange(batch.video_mask.shape[1]).expand_as(batch.video_mask)
    targets = replace(
        batch.targets,
        spans=torch.tensor([0.5, 1.0]).expand_as(batch.targets.spans),
        in_moment=batch.video_mask,
        saliency=(1.0 + clips) * batch.video_mask,
        pair_mask=torch.zeros_like(batch.targets.pair_mask),
    )
    return replace(batch, targets=targets)


def without_moments(batch: Batch) -> Batch:
    assert batch.targets is not None
    targets = replace(
        batch.targets,
        span_mask=torch.zeros_like(batch.targets.span_mask),
        saliency=torch.zeros_like(batch.targets.saliency),
    )
    return replace(batch, targets=targets)


@pytest.mark.parametrize("change", [whole, without_moments], ids=["whole video", "no moments"])
@every_part
def test_extreme_ground_truth_trains_without_nan(case: Case, change: Any) -> None:
    check_step(case.build().train(), change(small([6, 4], [3, 2])))


@pytest.mark.parametrize("size", [1e3, 0.0], ids=["huge", "zero"])
@every_part
def test_extreme_features_train_without_nan(case: Case, size: float) -> None:
    batch = small([6, 4], [3, 2])
    texts = {name: replace(each, x=each.x * size) for name, each in batch.texts.items()}
    changed = replace(batch, video=batch.video * size, text=batch.text * size, texts=texts)
    check_step(case.build().train(), changed)


@every_part
def test_autocast_to_bfloat16_trains_and_stays_near(case: Case) -> None:
    model, batch = case.build().train(), ragged()
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        check_step(model, batch)
        assert {loss.dtype for loss in model.losses(batch).values()} == {torch.float32}
        near = model(batch)
    if "start_logits" in exact.extras:  # spans are picked from places: any two may change ranks
        for edge in ("start_logits", "end_logits"):
            apart = near.extras[edge].softmax(1) - exact.extras[edge].softmax(1)
            assert apart.abs().max() < 0.05
    else:
        assert (near.spans - exact.spans).abs().max() < 0.05
    assert near.saliency.dtype == torch.float32


def check_step(model: RetrievalModel, batch: Batch) -> None:
    total = torch.stack(list(model.losses(batch, StepContext()).values())).sum()
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


class AsksTheDevice(TorchDispatchMode):
    """Collects operators whose result the CPU waits for: numbers, and shapes that depend on one."""

    WAITING = frozenset({"_local_scalar_dense", "equal", "masked_select", "nonzero", "_unique2"})

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        indices = args[1] if name in {"index", "index_put", "index_put_"} else ()
        if name in self.WAITING or any(x is not None and x.dtype == torch.bool for x in indices):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("epoch", [0, 100])
@every_part
def test_a_training_step_waits_for_no_value_of_the_device(case: Case, epoch: int) -> None:
    model, batch = case.build().train(), ragged()
    with AsksTheDevice() as asked:
        losses = model.losses(batch, StepContext(epoch=epoch))
        torch.stack(list(losses.values())).sum().backward()
    assert not asked.found


def test_what_waits_for_a_value_of_the_device_is_noticed() -> None:
    x = torch.tensor([1.0, 2.0])
    for wait in (
        lambda: x[0].item(),
        lambda: x[x > 1],
        lambda: (x > 1).nonzero(),
        lambda: x.unique(),
    ):
        with AsksTheDevice() as asked:
            wait()
        assert asked.found


@pytest.mark.slow
@every_model
def test_thirty_two_samples_can_be_learned_by_heart(name: str) -> None:
    batch = small([10] * 32, [4] * 32, seed=1)
    known = MODELS.get(name).options.model_fields
    # The focal loss gives the label a tenth of the gradient that the cross entropy gives it.
    more: dict[str, Any] = {"label_weight": 40.0} if "label" in known else {}
    more |= {key: 64 for key in ("hidden", "feedforward") if key in known}
    model = narrow(name, **more)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(1, 301):
        loss = torch.stack(list(model.losses(batch, StepContext()).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 25 == 0 and recall(model, batch) == 1:
            return
    pytest.fail(f"R1@0.7 is {recall(model, batch):.2f} after {step} steps on 32 samples")


@torch.no_grad()
def recall(model: RetrievalModel, batch: Batch) -> float:
    """R1@0.7 with one moment a sample."""
    assert batch.targets is not None
    best = ranked(model.eval()(batch))[:, 0, :2]
    model.train()
    return (overlap(best, start_end(batch.targets.spans[:, 0]))[0] >= 0.7).float().mean().item()
