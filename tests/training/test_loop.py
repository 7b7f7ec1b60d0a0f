"""The loop on a real store: resuming, choosing the best epoch, schedules, and failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.config import parse_config
from data.errors import UsageError
from training.checkpoint import save_checkpoint
from training.config import TrainerConfig
from training.data import Order
from training.fit import fit
from training.loop import (
    DivergedError,
    Loop,
    Progress,
    Reporter,
    Silent,
)
from training.run import Run
from training.session import Session, predict_untrained
from training.stopping import Stop, StoppedError, stop_on_signals
from training.validate import Evaluation


class StopsAt(Silent):
    """Asks to stop when so many batches of this part of the run are done."""

    def __init__(self, stop: Stop, batches: int) -> None:
        self.stop, self.left = stop, batches

    def step(self, epoch: int, batch: int, batches: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.request()


def train(values: dict[str, Any], out: Path, *, resume: bool = False, stop_at: int = 0) -> Run:
    stop = Stop()

    @contextmanager
    def report(progress: Progress, _select: str) -> Iterator[Reporter]:
        yield StopsAt(stop, stop_at)

    run, _ = fit(
        parse_config(TrainerConfig, values, source="test"),
        out,
        resume=resume,
        allow_overlap=False,
        tell=lambda sentence: None,
        report=report,
        stop=stop,
    )
    return run


def history(run: Path) -> list[dict[str, Any]]:
    lines = (run / "history.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


def assert_equal_states(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_states(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_equal_states(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize(
    ("stops", "cache"),
    [
        pytest.param([6], "device", id="at-the-end-of-an-epoch"),
        pytest.param([1, 3, 3], "device", id="often"),
        pytest.param([4], "none", id="in-an-epoch-streamed"),
    ],
)
def test_a_stopped_and_resumed_run_equals_one_that_was_not_stopped(
    tmp_path: Path, values: dict[str, Any], stops: list[int], cache: str
) -> None:
    values["loop"]["epochs"] = 4
    values["data"] |= {"cache": cache, "workers": 0}
    train(values, tmp_path / "straight")
    for part, batches in enumerate(stops):
        with pytest.raises(StoppedError, match="stopped in epoch"):
            train(values, tmp_path / "parts", resume=part > 0, stop_at=batches)
    train(values, tmp_path / "parts", resume=True)

    straight, parts = Run.open(tmp_path / "straight"), Run.open(tmp_path / "parts")
    assert history(tmp_path / "parts") == history(tmp_path / "straight")
    for which in ("last", "best"):
        one, other = straight.checkpoint(which), parts.checkpoint(which)  # type: ignore[arg-type]
        for key in ("model", "optimizer", "random"):
            assert_equal_states(one[key], other[key])
    assert parts.predictions_path.read_text() == straight.predictions_path.read_text()
    metrics = [json.loads((each.path / "metrics.json").read_text()) for each in (straight, parts)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("stops", [[6], [2, 3]], ids=["at-the-end-of-an-epoch", "often"])
def test_a_run_with_a_queue_and_slow_encoders_goes_on_where_it_stopped(
    tmp_path: Path, values: dict[str, Any], stops: list[int]
) -> None:
    """Seven keys are no multiple of a batch: the ring is cut in the middle of one."""
    values["loop"]["epochs"] = 2
    values["model"]["plugins"] = {"distill_align": {"queue_length": 7, "momentum": 0.9}}
    train(values, tmp_path / "straight")
    for part, batches in enumerate(stops):
        with pytest.raises(StoppedError):
            train(values, tmp_path / "parts", resume=part > 0, stop_at=batches)
    train(values, tmp_path / "parts", resume=True)
    one, other = (Run.open(tmp_path / name).checkpoint("last") for name in ("straight", "parts"))
    for key in ("model", "optimizer", "random"):
        assert_equal_states(one[key], other[key])
    queue = {key: x for key, x in one["model"].items() if ".queue." in key}
    assert len(queue) == 4  # keys of both modalities, their samples, the place of the next one
    fast = one["model"]["encoders.video.linears.0.weight"]
    slow = one["model"]["criterion.terms.distill_align.momentum.video.linears.0.weight"]
    assert not torch.equal(fast, slow)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    values["loop"]["epochs"] = 1
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        values["loop"]["seed"] = seed
        train(values, tmp_path / name)
    assert history(tmp_path / "a") == history(tmp_path / "b")
    assert history(tmp_path / "a") != history(tmp_path / "c")


def test_a_finished_run_can_be_trained_longer(tmp_path: Path, values: dict[str, Any]) -> None:
    values["optim"]["schedule"] = {"name": "constant"}
    values["loop"]["epochs"] = 3
    train(values, tmp_path / "straight")
    values["loop"]["epochs"] = 1
    train(values, tmp_path / "longer")
    values["loop"]["epochs"] = 3
    train(values, tmp_path / "longer", resume=True)
    assert history(tmp_path / "longer") == history(tmp_path / "straight")


def test_a_run_that_is_trained_longer_stays_so_after_a_second_stop(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    values["loop"]["epochs"] = 1
    run = train(values, tmp_path / "run")
    values["loop"]["epochs"] = 3
    with pytest.raises(StoppedError):
        train(values, run.path, resume=True, stop_at=1)
    assert Run.open(run.path).config.loop.epochs == 3
    assert not (run.path / "metrics.json").exists()


@pytest.mark.parametrize("damage", ["random", "optimizer"])
def test_a_checkpoint_that_lacks_a_part_is_answered_with_a_sentence(
    tmp_path: Path, values: dict[str, Any], damage: str
) -> None:
    values["loop"]["epochs"] = 1
    run = train(values, tmp_path / "run")
    state = run.checkpoint("last")
    del state[damage]
    save_checkpoint(run.path / "checkpoints" / "last.pt", state)
    values["loop"]["epochs"] = 2
    with pytest.raises(UsageError, match=f"does not fit the model .*{damage}.* another run"):
        train(values, run.path, resume=True)
    assert Run.open(run.path).config.loop.epochs == 1


def test_a_folder_that_is_taken_is_refused_before_the_store_is_looked_at(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    (tmp_path / "notes.txt").touch()
    values["data"]["store"] = "nowhere"
    with pytest.raises(UsageError, match="exists already and nothing in it is deleted"):
        train(values, tmp_path)


def test_resuming_with_another_configuration_is_refused_by_name(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    values["loop"]["epochs"] = 1
    train(values, tmp_path / "run")
    values["optim"]["lr"] = 0.5
    with pytest.raises(UsageError, match=r"optim\.lr was 0\.001 and is 0\.5"):
        train(values, tmp_path / "run", resume=True)


def test_a_run_that_was_killed_before_its_last_record_is_finished_by_resuming(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    run = train(values, tmp_path / "run")
    records = {name: run.path / name for name in ("metrics.json", "history.jsonl")}
    before = {name: path.read_text() for name, path in records.items()}
    for path in records.values():
        path.unlink()
    train(values, tmp_path / "run", resume=True)
    assert {name: path.read_text() for name, path in records.items()} == before


def test_resuming_where_nothing_was_started_starts(tmp_path: Path, values: dict[str, Any]) -> None:
    values["loop"]["epochs"] = 1
    train(values, tmp_path / "run", resume=True)
    assert len(history(tmp_path / "run")) == 1


def test_the_tiny_split_is_learned_by_heart(tmp_path: Path, values: dict[str, Any]) -> None:
    values["data"]["train"] = "val"
    values["eval"] |= {"split": "val", "every": 150}
    values["model"]["options"] |= {"hidden": 32, "feedforward": 64, "input_dropout": 0.0}
    values["model"]["options"] |= {"dropout": 0.0}
    values["optim"] = {"lr": 3e-3}
    values["loop"] |= {"epochs": 150, "batch_size": 10, "save_every": 150}
    config = parse_config(TrainerConfig, values, source="test")
    stop = Stop()
    session = Session(config, lambda sentence: None)
    before = session.score(session.train, predict_untrained(session, session.train))

    @contextmanager
    def report(progress: Progress, _select: str) -> Iterator[Reporter]:
        yield Silent()

    _, progress = fit(
        config,
        tmp_path / "run",
        resume=False,
        allow_overlap=True,
        tell=lambda sentence: None,
        report=report,
        stop=stop,
    )
    assert progress.last is not None
    assert progress.last["scores"]["brief"]["MR-full-R1@0.5"] >= 90
    # 60 with these random weights; 20 and 40 with others
    assert before["brief"]["MR-full-R1@0.5"] <= 60


class OneNumber:
    """The smallest task: a single weight; its loss and its score are given per epoch."""

    def __init__(self, loss: Callable[[int], float] = lambda epoch: 1.0) -> None:
        self.model: nn.Module = nn.Linear(1, 1, bias=False)
        self.loss = loss
        self.steps: list[int] = []

    def losses(self, batch: Any, context: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.model.weight.sum() * self.loss(context.epoch)}

    def after_step(self, context: Any) -> None:
        self.steps.append(context.step)

    def predict(self, batch: Any) -> list[Any]:
        return []


class Kept:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.saved: list[str] = []
        self.best: list[Evaluation] = []

    def save(self, which: str, state: Callable[[], dict[str, Any]]) -> None:
        self.saved.append(f"{which} {state()['progress']['epoch']}")

    def record(self, progress: Progress) -> None:
        pass

    def predictions(self, evaluation: Evaluation) -> None:
        self.best.append(evaluation)


class Batches:
    """As many empty batches as the order asks for."""

    about = ""

    def read(self, batches: Any, draw: Any) -> Iterator[None]:
        yield from (None for _ in batches)


def tiny_loop(task: OneNumber, values: list[float | None], **more: Any) -> Loop:
    scores = iter(values)

    def validate() -> Evaluation:
        return Evaluation({"brief": {"score": next(scores)}}, [])

    return Loop(
        task=task,
        queries=Batches(),  # type: ignore[arg-type]
        order=Order(4, 2),
        validate=validate,
        optimizer=torch.optim.SGD(task.model.parameters(), lr=1.0),
        epochs=more.pop("epochs", len(values)),
        select="score",
        keeper=more.pop("keeper", Kept()),
        device=torch.device("cpu"),
        rate=more.pop("rate", lambda epoch, step: 0.0),
        **more,
    )


def test_the_best_epoch_is_the_first_of_the_highest_and_both_are_kept() -> None:
    kept = Kept()
    progress = tiny_loop(OneNumber(), [1.0, 3.0, None, 3.0, 2.0], keeper=kept).fit(Progress())
    assert progress.best == {"epoch": 2, "value": 3.0, "scores": {"brief": {"score": 3.0}}}
    assert progress.last == {"epoch": 5, "scores": {"brief": {"score": 2.0}}}
    assert [each for each in kept.saved if "best" in each] == ["best 1", "best 2"]
    assert len(kept.best) == 2


def test_evaluation_and_saving_happen_once_in_a_while_and_at_the_end() -> None:
    kept = Kept()
    loop = tiny_loop(OneNumber(), [1.0, 1.0], epochs=5, keeper=kept, eval_every=4, save_every=3)
    progress = loop.fit(Progress())
    evaluated = [each["epoch"] for each in progress.history if each["val"]]
    assert evaluated == [4, 5]
    assert [each for each in kept.saved if "last" in each] == ["last 3", "last 5"]


def test_the_rate_of_each_step_is_used_and_the_last_of_an_epoch_is_recorded() -> None:
    task = OneNumber()
    start = float(task.model.weight.detach())
    loop = tiny_loop(task, [1.0, 1.0], rate=lambda epoch, step: 10.0**-step, clip_grad=0.0)
    progress = loop.fit(Progress())
    assert [each["lr"] for each in progress.history] == [0.1, 0.001]
    assert float(task.model.weight.detach()) == pytest.approx(start - 1.111, abs=1e-5)


def test_the_task_is_told_of_every_optimiser_step() -> None:
    task = OneNumber()
    tiny_loop(task, [1.0, 1.0]).fit(Progress())
    assert task.steps == [0, 1, 2, 3]


def test_parts_of_the_model_are_told_of_every_optimiser_step(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(
        "models.retrieval.RetrievalModel.after_step",
        lambda model, context: told.append(context.step),
    )
    values["loop"]["epochs"] = 1
    train(values, tmp_path / "run")
    assert told == [0, 1, 2]


def test_gradients_are_clipped() -> None:
    task = OneNumber()
    start = float(task.model.weight.detach())
    tiny_loop(task, [1.0], rate=lambda epoch, step: 1.0, clip_grad=0.1).fit(Progress())
    assert float(task.model.weight.detach()) == pytest.approx(start - 0.2, abs=1e-5)


def test_losses_are_means_over_the_batches_of_an_epoch() -> None:
    task = OneNumber(lambda epoch: epoch + 1.0)
    weight = float(task.model.weight.detach())
    progress = tiny_loop(task, [1.0, 1.0]).fit(Progress())
    means = [each["losses"]["total"] for each in progress.history]
    assert means == pytest.approx([weight, 2 * weight])


def test_a_loss_that_is_not_finite_stops_before_anything_is_overwritten() -> None:
    kept = Kept()
    task = OneNumber(lambda epoch: float("nan") if epoch == 1 else 1.0)
    loop = tiny_loop(task, [1.0, 1.0, 1.0], keeper=kept)
    with pytest.raises(
        DivergedError, match=r"in epoch 2 the loss 'total' is nan; .* Lower optim\.lr"
    ):
        loop.fit(Progress())
    assert kept.saved == ["best 1", "last 1"]


def test_a_checkpoint_of_another_number_of_processes_is_refused() -> None:
    loop = tiny_loop(OneNumber(), [1.0])
    with pytest.raises(UsageError, match="written by 2 processes and this run has 1"):
        loop.restore({"random": [{}, {}]})


def test_signals_ask_to_stop_and_are_given_back() -> None:
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
