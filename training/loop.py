"""The training loop. It sees one seam, `MomentTask`, and names no model, loss or dataset.

`Progress.state` with the model and the optimiser is the whole resume contract: a run that was
stopped anywhere and continued has the same weights and the same history as one that was not.
The learning rate and the order of queries are functions of the step and the epoch, so they have
nothing to save.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.errors import StorylineError, UsageError
from data.foreign import strict_json
from models.retrieval.types import StepContext
from training.batch import Draw
from training.checkpoint import random_state, restore_random_state
from training.data import Order, Queries
from training.distributed import ALONE, World
from training.stopping import Stop, StoppedError
from training.task import MomentBatch, MomentTask
from training.validate import Evaluation

__all__ = [
    "DivergedError",
    "Loop",
    "Progress",
    "Reporter",
    "Silent",
]

AGREE_EVERY = 16
"""Steps between two questions whether any process was asked to stop: each costs a round trip."""


class DivergedError(StorylineError):
    """A loss is no longer a finite number."""


@dataclass
class Progress:
    """Where training stands.

    Args:
        epoch: finished epochs.
        batch: finished batches of the epoch under way.
        step: finished optimiser steps.
        losses: sums over the finished batches of the epoch under way, float64 on the device.
        history: one record for each finished epoch.
        best: epoch, value and scores of the best evaluation so far.
        last: epoch and scores of the latest evaluation.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    losses: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint, all but the losses, which differ between processes."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "records": json.dumps([self.history, self.best, self.last]),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], losses: dict[str, Tensor]) -> Progress:
        """The inverse of `state`."""
        history, best, last = strict_json(state["records"])
        return cls(state["epoch"], state["batch"], state["step"], losses, history, best, last)


class Reporter(Protocol):
    """Who tells a person how training goes."""

    def step(self, epoch: int, batch: int, batches: int) -> None:
        """`batch` of `batches` of `epoch` (from 1) is done."""
        ...

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is done; `record` is its line of the history."""
        ...


class Silent:
    """Tells nobody: processes that do not lead."""

    def step(self, epoch: int, batch: int, batches: int) -> None:
        """Nothing."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


class Keeper(Protocol):
    """Who writes what must survive; called in the leading process only."""

    def save(self, which: str, state: Callable[[], dict[str, Any]]) -> None:
        """Write checkpoint "last" or "best"."""
        ...

    def record(self, progress: Progress) -> None:
        """Write the history and the scores."""
        ...

    def predictions(self, evaluation: Evaluation) -> None:
        """Write the predictions of the best epoch so far."""
        ...


@dataclass
class Loop:
    """Everything that training needs.

    Args:
        task: what is trained.
        queries: the training split.
        order: in which order its queries come.
        validate: scores the model as it is.
        optimizer: of the model's parameters.
        rate: learning rate of (epoch, step), both from 0.
        epochs: to train in all.
        select: brief metric that chooses the best epoch; higher is better.
        eval_every, save_every: epochs between two evaluations and two writes; the last epoch has
            both.
        clip_grad: largest gradient norm; 0 does not clip.
        seed, max_windows: of the draws of targets.
        scaler: for float16, else disabled.
        keeper, report, world, stop: see there.
    """

    task: MomentTask
    queries: Queries
    order: Order
    validate: Callable[[], Evaluation]
    optimizer: torch.optim.Optimizer
    rate: Callable[[int, int], float]
    epochs: int
    select: str
    keeper: Keeper
    device: torch.device
    eval_every: int = 1
    save_every: int = 1
    clip_grad: float = 0.1
    seed: int = 0
    max_windows: int = 5
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler(enabled=False)
    )
    report: Reporter = field(default_factory=Silent)
    world: World = ALONE
    stop: Stop = field(default_factory=Stop)

    def fit(self, progress: Progress) -> Progress:
        """Train from `progress` to the end.

        Raises:
            StoppedError: asked to stop; the last checkpoint is where it stopped.
            DivergedError: a loss is not finite; the last checkpoint is from before.
        """
        while progress.epoch < self.epochs:
            started = time.monotonic()
            self._train_epoch(progress)
            losses = self._mean_losses(progress)
            record = {
                "epoch": progress.epoch + 1,
                "step": progress.step,
                "lr": self.rate(progress.epoch, progress.step - 1),
                "losses": losses,
                "seconds": 0.0,
                "val": None,
            }

            # once in a while: evaluate
            evaluation = self._evaluate_sometimes(progress, record)
            progress.epoch, progress.batch, progress.losses = progress.epoch + 1, 0, {}
            record["seconds"] = round(time.monotonic() - started, 3)
            progress.history.append(record)

            # once in a while: save
            if evaluation is not None and self._is_best(progress):
                self._save("best", progress)
                if self.world.leads:
                    self.keeper.predictions(evaluation)
            if progress.epoch % self.save_every == 0 or progress.epoch == self.epochs:
                self._save("last", progress)

            if self.world.leads:
                self.keeper.record(progress)
                self.report.epoch(record)
        # also where an earlier part was killed between its last checkpoint and its last record
        if self.world.leads:
            self.keeper.record(progress)
        return progress

    def _train_epoch(self, progress: Progress) -> None:
        """The batches of an epoch that are not done yet."""
        self.task.model.train()
        batches = self.order.batches(progress.epoch)
        draw = Draw(self.seed, progress.epoch, self.max_windows)
        for batch in self.queries.read(batches[progress.batch :], draw):
            self._train_step(batch, progress, len(batches))
            progress.batch += 1
            progress.step += 1
            self.report.step(progress.epoch + 1, progress.batch, len(batches))
            if self._asked_to_stop(progress):
                self._save("last", progress)
                raise StoppedError(
                    f"stopped in epoch {progress.epoch + 1} of {self.epochs}, after "
                    f"{progress.batch} of {len(batches)} batches"
                )

    def _train_step(self, batch: MomentBatch, progress: Progress, batches: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(progress.epoch, progress.step)
        context = StepContext(progress.epoch, progress.step, batches)
        losses = self.task.losses(batch, context)
        total = torch.stack([*losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(total))
        if self.clip_grad > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.task.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.after_step(context)
        # added up on the device: reading a loss here would wait for it in every step
        for name, value in (("total", total), *losses.items()):
            sofar = progress.losses.get(name, torch.zeros((), dtype=torch.float64))
            progress.losses[name] = sofar.to(value.device) + value.detach().double()

    def _mean_losses(self, progress: Progress) -> dict[str, float]:
        sums = self.world.mean(progress.losses)
        means = {name: value / max(progress.batch, 1) for name, value in sums.items()}
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise DivergedError(
                f"in epoch {progress.epoch + 1} the loss '{broken[0]}' is {means[broken[0]]}; "
                "checkpoints, if any, are from before. Lower optim.lr, or use "
                "loop.precision=float32"
            )
        return means

    def _evaluate_sometimes(self, progress: Progress, record: dict[str, Any]) -> Evaluation | None:
        epoch = progress.epoch + 1
        if epoch % self.eval_every and epoch != self.epochs:
            return None
        evaluation = self.validate() if self.world.leads else None
        scores = self.world.share(evaluation.scores if evaluation else None)
        record["val"] = scores["brief"]
        progress.last = {"epoch": epoch, "scores": scores}
        value = scores["brief"][self.select]
        if value is not None and (progress.best is None or value > progress.best["value"]):
            progress.best = {"epoch": epoch, "value": value, "scores": scores}
        return evaluation or Evaluation(scores, ())

    def _is_best(self, progress: Progress) -> bool:
        return progress.best is not None and progress.best["epoch"] == progress.epoch

    def _asked_to_stop(self, progress: Progress) -> bool:
        if self.world.size > 1 and progress.batch % AGREE_EVERY:
            return False
        return self.world.any(self.stop.requested, self.device)

    def _save(self, which: str, progress: Progress) -> None:
        random_states = self.world.gather(random_state(self.device))
        losses = self.world.gather({name: x.cpu() for name, x in progress.losses.items()})
        if self.world.leads:
            self.keeper.save(
                which,
                lambda: {
                    "model": self.task.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "random": random_states,
                    "losses": losses,
                    "progress": progress.state(),
                },
            )

    def restore(self, state: Mapping[str, Any]) -> Progress:
        """Continue where a checkpoint of `_save` stood.

        Raises:
            UsageError: it was written by another number of processes.
        """
        if len(state["random"]) != self.world.size:
            raise UsageError(
                f"the checkpoint was written by {len(state['random'])} processes and this run has "
                f"{self.world.size}: the rest of the run would differ; start as many as before"
            )
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        restore_random_state(state["random"][self.world.rank], self.device)
        losses = state["losses"][self.world.rank]
        return Progress.of(
            state["progress"], {name: value.to(self.device) for name, value in losses.items()}
        )
