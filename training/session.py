"""From a configuration to something that trains, evaluates or predicts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from data.annotations import DATASETS, dataset_of
from data.annotations.leakage import Seen
from data.annotations.lint import sheet_of
from data.annotations.types import Annotation
from data.errors import StoreError, UsageError
from data.store import Store
from data.store.place import text_of
from training.baselines import BlindBaseline
from training.checks import faults_told, lengths_in, refuse_overlap
from training.config import TrainerConfig
from training.data import Order, Queries, hold
from training.distributed import ALONE, World, device_of
from training.evaluate import measure
from training.imported import check_features
from training.metrics import Measured, Scores
from training.predictions import Prediction, rounded
from training.retrieval_task import RetrievalTask, build_model, decoding_of
from training.run import Run, Which
from training.selection import rows_of
from training.split import Split, Tell
from training.trained_on import TrainedOn, recall
from training.validate import predict

__all__ = [
    "Session",
    "predict_blind",
    "predict_run",
    "predict_untrained",
]


class Session:
    """What all commands build from a configuration; each part when it is first asked for.

    Args:
        config: the whole configuration.
        tell: says to the user what they would not expect.
        world: processes that work together.
    """

    def __init__(self, config: TrainerConfig, tell: Tell, world: World = ALONE) -> None:
        self.config = config
        self.tell = tell
        self.world = world
        self.store = Store.open(config.data.store)
        self._rows: dict[str, list[Annotation]] = {}
        self.dataset = dataset_of(self.store.dataset)
        if self.dataset.name != self.store.dataset:
            tell(
                f"dataset '{self.store.dataset}' has no scoring of its own here "
                f"({', '.join(DATASETS)} have): predictions are not rounded, and the metrics are "
                f"{self.dataset.metrics[0]}, unless eval.round_to_clip and eval.metrics say "
                "otherwise"
            )
        usual_s, clip_len_s = self.dataset.clip_len_s, self.store.clip_len_s
        if usual_s not in (None, clip_len_s):
            tell(
                f"{self.store.path} has clips of {clip_len_s:g} s; figures of papers on "
                f"'{self.dataset.name}' are of clips of {usual_s:g} s"
            )
        self.device = device_of(config.loop.device)
        if config.loop.precision == "float16" and self.device.type == "cpu":
            raise UsageError(
                f"loop.precision=float16 needs a GPU, and loop.device={config.loop.device} is the "
                "CPU here; use loop.precision=bfloat16 or float32"
            )

    def split(self, name: str) -> Split:
        """A split of the store, or what `data.hold_out` took from one, to score or predict."""
        return Split.open(self.store, self.config.data, name, self.rows(name), self.tell)

    def rows(self, name: str) -> list[Annotation]:
        """The queries of a split that the configuration asks for, as the store has them."""
        if name not in self._rows:
            data, (option, where) = self.config.data, self.where(name)
            found = rows_of(self.store, name, data.train, data.hold_out, where, option)
            self._rows[name] = found
        return self._rows[name]

    def where(self, name: str) -> tuple[str, Mapping[str, Any]]:
        """Which option says what part of a split is wanted, and what it says; {} for all of it."""
        data, scored = self.config.data, self.config.eval.where
        if name != data.train and scored is not None:
            return "eval.where", scored
        return "data.where", data.where

    @cached_property
    def shows_moments(self) -> bool:
        """Whether the training split has moments; a model of another one predicts none."""
        return any(each.windows is not None for each in self.rows(self.config.data.train))

    @cached_property
    def train(self) -> Split:
        """The training split, its moments mended."""
        data = self.config.data
        return Split.to_train(self.store, data, data.train, self.rows(data.train), self.tell)

    def hold(self, split: Split) -> Queries:
        """The features of a split, on the device if they fit."""
        data = self.config.data
        ratings = self.dataset.ratings
        queries = hold(split.samples, self.device, data.cache, data.workers, ratings)
        self.tell(f"split '{split.name}': {queries.about}")
        return queries

    def task(self, split: Split, *, moments: bool = True) -> RetrievalTask:
        """The model at its seeded initialisation, for the feature widths of `split`.

        Args:
            split: any split.
            moments: whether it is or was shown moments.
        """
        loop = self.config.loop
        torch.manual_seed(loop.seed)
        model = build_model(self.config.model, split.samples).to(self.device)
        return RetrievalTask(
            model,
            decoding_of(model, self.config.eval, self.dataset.post),
            device=self.device,
            precision=loop.precision,
            compile=loop.compile,
            moments=moments,
            world=self.world,
        )

    def order(self, split: Split) -> Order:
        """All queries of a split as they come."""
        return Order(len(split.samples), self.config.eval.batch_size, shuffle=False)

    @property
    def metrics(self) -> str:
        """Which evaluator scores: the configured one, or the dataset's usual one."""
        return self.config.eval.metrics or self.dataset.metrics[0]

    def measure(self, split: Split, predictions: Sequence[Prediction]) -> Measured:
        """What the metrics find out about predictions for a split, whoever made them."""
        return measure(
            split.annotations,
            predictions,
            metrics=self.metrics,
            clip_len_s=self.store.clip_len_s,
            mode=self.config.eval.mode,
        )

    def score(self, split: Split, predictions: Sequence[Prediction]) -> Scores:
        """Scores of predictions for a split."""
        return self.measure(split, predictions).scores()

    def check_disjoint(self, split: Split, *, allow: bool, run: Run | None = None) -> str | None:
        """Refuse a split that shares videos, or recordings, with what was trained on.

        Args:
            split: what is to be scored.
            allow: only say so.
            run: whose training, wherever it was; None: the configured training split.

        Returns:
            What is shared and was allowed, as it was told; None if nothing is.
        """
        note = refuse_overlap(
            split.annotations,
            self.trained_on.seen if run is None else self._seen_by(run, allow=allow),
            scored_name=f"split '{split.name}'",
            source_of=self.dataset.source_of,
            allow=allow,
        )
        if note:
            self.tell(note)
        return note

    @cached_property
    def trained_on(self) -> TrainedOn:
        """The configured training split."""
        name = self.config.data.train
        return TrainedOn.of(self.rows(name), name, self.store.dataset, self.dataset.source_of)

    def _seen_by(self, run: Run, *, allow: bool) -> Seen:
        known = recall(run.path)
        if known is not None:
            return known.seen
        unknown = f"'{run.path}' is of a version that did not write down what it was trained on"
        if run.imported:
            unknown = f"'{run.path}' was imported, and nobody said what it was trained on"
        train, splits = self.config.data.train, self.store.splits()
        if train in splits:
            self.tell(f"{unknown}; taking it for split '{train}' of {self.store.path}")
            return self.trained_on.seen
        if not allow:
            raise UsageError(
                f"{unknown}, and {self.store.path} has no split '{train}' to take for it; check "
                "yourself that no video is shared and pass --allow-overlap, or train again"
            )
        self.tell(f"{unknown}; whether videos are shared was not checked")
        return Seen()

    def tell_faults(self, split: Split) -> None:
        """Say which errors the annotations of a split have; training and scoring go on."""
        file = split.name if split.name in self.store.splits() else self.config.data.train
        path = text_of(self.store.path / "annotations" / f"{file}.jsonl")
        try:
            lengths_s = lengths_in(self.store)
        except StoreError as error:
            self.tell(f"{error}; durations were not compared with those of the videos")
            lengths_s = {}
        name, clip_len_s = f"split '{split.name}'", self.store.clip_len_s
        sheet = sheet_of(split.annotations, name, self.dataset, clip_len_s, lengths_s)
        told = faults_told(sheet, f"trainer lint {shlex.quote(path)}")
        if told:
            self.tell(told)


def predict_run(session: Session, run: Run, split: Split, which: Which) -> list[Prediction]:
    """Predictions of a trained run for a split, with or without ground truth."""
    task = _trained(session, run, split, which)
    return predict(task, session.hold(split), session.order(split))


def predict_untrained(session: Session, split: Split) -> list[Prediction]:
    """Predictions of the model at its initialisation."""
    task = session.task(split, moments=session.shows_moments)
    return predict(task, session.hold(split), session.order(split))


def predict_blind(session: Session, split: Split) -> list[Prediction]:
    """Predictions of the moment prior of the training split."""
    truths = session.train.truths(session.dataset.ratings)
    blind = BlindBaseline.fit([each for each in truths if each is not None])
    return [rounded(blind.predict(each)) for each in split.infos()]


def _trained(session: Session, run: Run, split: Split, which: Which) -> RetrievalTask:
    changed = run.changed_features(split.samples.recipes)
    if changed:
        session.tell(f"the features are not those of the training: {changed}")
    if run.imported:
        session.tell(
            f"'{run.path}' was trained elsewhere ({run.imported}): its scores mean something if "
            "your features are made as its own were"
        )
    if not run.shows_moments and any(row.windows is not None for row in split.annotations):
        session.tell(f"'{run.path}' was trained on ratings of clips alone: it predicts no moments")
    check_features(run, split.samples)
    task = session.task(split, moments=run.shows_moments)
    with run.explained():
        task.model.load_state_dict(run.checkpoint(which, session.device)["model"])
    return task
