"""From a configuration to something that trains, evaluates or predicts."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from data.annotations import DATASETS, dataset_of
from data.annotations.leakage import Seen
from data.annotations.lint import sheet_of
from data.annotations.types import Annotation
from data.errors import StoreError, UsageError
from data.store import Store
from data.store.place import anchored, text_of
from training.baselines import BlindBaseline
from training.checks import faults_told, lengths_in, refuse_overlap
from training.config import TrainerConfig
from training.data import Order, Queries, hold
from training.distributed import ALONE, World, device_of
from training.evaluate import measure
from training.loop import Loop, Progress, Reporter
from training.metrics import Measured, Scores
from training.predictions import Prediction, rounded
from training.rehearsal import rehearse
from training.retrieval_task import RetrievalTask, build_model, decoding_of
from training.run import Run, Which, environment
from training.schedule import make_schedule
from training.selection import rows_of
from training.split import Split, Tell
from training.stopping import Stop
from training.trained_on import TrainedOn, recall, remember
from training.validate import Validator, predict

__all__ = [
    "Session",
    "Split",
    "fit",
    "predict_blind",
    "predict_run",
    "predict_untrained",
]

MAY_CHANGE = {
    "data.store",
    "data.cache",
    "data.workers",
    "loop.device",
    "loop.epochs",
    "loop.save_every",
}
"""Options with which a run may be resumed differently: where and how long, not what."""


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
                "those of QVHighlights, unless eval.round_to_clip and eval.metrics say otherwise"
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

    def check_disjoint(self, split: Split, *, allow: bool, run: Run | None = None) -> None:
        """Refuse a split that shares videos, or recordings, with what was trained on.

        Args:
            split: what is to be scored.
            allow: only say so.
            run: whose training, wherever it was; None: the configured training split.
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
        train, splits = self.config.data.train, self.store.splits()
        if train in splits:
            self.tell(f"{unknown}; taking it for split '{train}' of {self.store.path}")
            return self.trained_on.seen
        if not allow:
            raise UsageError(
                f"{unknown}, and {self.store.path} has no split '{train}' to take for it; check "
                "yourself that no video is shared and pass --allow-overlap, or train again"
            )
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


def fit(
    config: TrainerConfig,
    out: Path,
    *,
    resume: bool,
    allow_overlap: bool,
    tell: Tell,
    report: Callable[[Progress, str], AbstractContextManager[Reporter]],
    stop: Stop,
    world: World = ALONE,
) -> tuple[Run, Progress]:
    """Train, or continue to train, and keep everything in a run directory.

    Args:
        config: what to train.
        out: the run directory.
        resume: whether to continue what is there.
        allow_overlap: whether the evaluation split may share videos with the training split.
        tell: says a sentence to the user.
        report: gives the reporter of a run that stands at some progress and is selected by some
            metric, while it goes on.
        stop: asked after each step.
        world: processes that train together.

    Raises:
        UsageError: before anything is written, if the configuration, the features and the
            annotations do not fit together.
        StoppedError: asked to stop.
    """
    if world.leads and not resume:
        Run.refuse_taken(out)
    store = anchored(config.data.store)
    config = config.model_copy(update={"data": config.data.model_copy(update={"store": store})})
    if resume and Run.is_at(out):
        _check_same(Run.open(out).config, config, out)
    session = Session(config, tell, world)
    split = session.split(config.eval.split)
    session.check_disjoint(split, allow=allow_overlap)
    for each in (session.train, split):
        session.tell_faults(each)
    task = session.task(session.train, moments=session.shows_moments)
    measure_split, ratings = partial(session.measure, split), session.dataset.ratings
    selected_by = rehearse(session.train, split, measure_split, config.eval.select, ratings)
    queries = session.hold(session.train)
    validator = Validator(
        task, session.hold(split), session.order(split), partial(session.score, split)
    )

    about = environment(session.device, world.size, session.train.samples.recipes)
    about |= {"selected_by": selected_by, "moments": session.shows_moments}
    about["mended"] = session.train.mending
    about["queries_left_out"] = {
        each.name: each.samples.report.dropped_queries for each in (session.train, split)
    }
    run = _open_run(out, config, about, resume=resume, world=world)
    _remember(session, run)
    if world.leads:
        run.keep_left_out({each.name: each.samples.missing for each in (session.train, split)})
    loop = _loop(session, task, queries, validator, run, stop)
    progress = Progress()
    if resume and run.has_checkpoint:
        progress = _resumed(run, loop)
        tell(f"continuing after epoch {progress.epoch} and {progress.batch} batches")
    elif resume:
        tell("nothing was saved yet; starting from the beginning")
    if resume and world.leads:
        run.keep_config()
    with report(progress, run.selected_by) as loop.report:
        return run, loop.fit(progress)


def _remember(session: Session, run: Run) -> None:
    """Keep what is trained on; a run can only be continued on the same."""
    now, world = session.trained_on, session.world
    known = recall(run.path) if world.leads and run.has_checkpoint else None
    before = world.share(known and (known.split, known.queries, known.sha256))
    if before and before[2] != now.sha256:
        raise UsageError(
            f"'{run.path}' was trained on other annotations: split '{before[0]}' had {before[1]:,} "
            f"queries, '{now.split}' has {now.queries:,}, and they are not the same. Put the old "
            "ones back, or start a new run with --out"
        )
    if world.leads and not before:
        if run.has_checkpoint:
            session.tell(
                f"'{run.path}' did not write down what it was trained on until now; taking it for "
                f"split '{now.split}'"
            )
        remember(run.path, now)


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
    changed = _changed(run.about["features"], split.samples.recipes)
    if changed:
        session.tell(f"the features are not those of the training: {changed}")
    if not run.shows_moments and any(row.windows is not None for row in split.annotations):
        session.tell(f"'{run.path}' was trained on ratings of clips alone: it predicts no moments")
    task = session.task(split, moments=run.shows_moments)
    with _explained(run):
        task.model.load_state_dict(run.checkpoint(which, session.device)["model"])
    return task


def _resumed(run: Run, loop: Loop) -> Progress:
    with _explained(run):
        return loop.restore(run.checkpoint("last", loop.device))


@contextmanager
def _explained(run: Run) -> Iterator[None]:
    """Turn what torch raises about a checkpoint that does not fit into a sentence."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"a checkpoint of {run.path} does not fit the model of its configuration and these "
            f"features: {' '.join(str(error).split())[:300]}; is it from another run?"
        ) from None


def _loop(
    session: Session,
    task: RetrievalTask,
    queries: Queries,
    validator: Validator,
    run: Run,
    stop: Stop,
) -> Loop:
    config, world = session.config, session.world
    optim, loop = config.optim, config.loop
    schedule = make_schedule(optim.schedule)
    torch.manual_seed(loop.seed + 1 + world.rank)

    def rate(epoch: int, step: int) -> float:
        warm = min(1.0, (step + 1) / max(optim.warmup_steps, 1))
        return optim.lr * warm * schedule.factor(epoch, loop.epochs)

    trainable = [each for each in task.model.parameters() if each.requires_grad]
    return Loop(
        task=task,
        queries=queries,
        order=Order(
            len(session.train.samples),
            loop.batch_size,
            loop.seed,
            rank=world.rank,
            world=world.size,
        ),
        validate=validator,
        optimizer=torch.optim.AdamW(trainable, lr=optim.lr, weight_decay=optim.weight_decay),
        rate=rate,
        epochs=loop.epochs,
        select=run.selected_by,
        keeper=run,
        device=session.device,
        eval_every=config.eval.every,
        save_every=loop.save_every,
        clip_grad=optim.clip_grad,
        seed=loop.seed,
        max_windows=config.data.max_windows,
        scaler=torch.amp.GradScaler(session.device.type, enabled=loop.precision == "float16"),
        world=world,
        stop=stop,
    )


def _open_run(
    out: Path, config: TrainerConfig, about: Mapping[str, object], *, resume: bool, world: World
) -> Run:
    if not (resume and world.share(Run.is_at(out))):
        return Run.create(out, config, about) if world.leads else Run(out, config, about)
    run = Run.open(out)
    changed = _changed(run.about["features"], about["features"])
    if changed:
        raise UsageError(
            f"'{out}' was trained on other features: {changed}. Make those current again, or "
            "start a new run with --out"
        )
    return Run(out, config, run.about)


def _check_same(before: TrainerConfig, now: TrainerConfig, out: Path) -> None:
    old, new = _flat(before.model_dump()), _flat(now.model_dump())
    differing = [
        f"{key} was {old.get(key)} and is {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in MAY_CHANGE
    ]
    if differing:
        raise UsageError(
            f"'{out}' was started with another configuration: {'; '.join(differing)}. Resume "
            "without --config to continue it as it was, or start a new run with --out"
        )


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _changed(before: object, now: object) -> str:
    assert isinstance(before, Mapping)
    assert isinstance(now, Mapping)
    return "; ".join(
        f"{stage} had recipe {before.get(stage)} and has {now.get(stage)}"
        for stage in sorted(before.keys() | now.keys())
        if before.get(stage) != now.get(stage)
    )
