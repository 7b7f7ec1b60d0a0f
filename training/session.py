"""From a configuration to something that trains, evaluates or predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from data.annotations import DATASETS, dataset_of
from data.annotations.types import Annotation
from data.dataset import MomentDataset, missing_sentences
from data.errors import UsageError, nearest
from data.store import Store
from data.store.place import anchored
from training.baselines import BlindBaseline
from training.batch import QueryTruth, query_info
from training.config import DataGroup, TrainerConfig
from training.data import Order, Queries, hold
from training.distributed import ALONE, World, device_of
from training.evaluate import Validator, check_disjoint, predict, score
from training.loop import Loop, Progress, Reporter, Stop
from training.metrics import Scores
from training.predictions import rounded
from training.retrieval_task import RetrievalTask, build_model, decoding_of
from training.run import Run, Which, environment
from training.schedule import make_schedule
from training.task import Prediction, QueryInfo

__all__ = [
    "Session",
    "Split",
    "fit",
    "predict_blind",
    "predict_run",
    "predict_untrained",
]

Tell = Callable[[str], None]
"""Says a sentence to the user."""

MAY_CHANGE = {
    "data.store",
    "data.cache",
    "data.workers",
    "loop.device",
    "loop.epochs",
    "loop.save_every",
}
"""Options with which a run may be resumed differently: where and how long, not what."""


@dataclass(frozen=True)
class Split:
    """One split of a store.

    Args:
        name: of the split.
        samples: the queries that have their features.
        annotations: of the same queries, untouched: what predictions are scored against.
    """

    name: str
    samples: MomentDataset
    annotations: Sequence[Annotation]

    @classmethod
    def open(cls, store: Store, config: DataGroup, name: str, tell: Tell) -> Split:
        """Open a split and say what was cut or left out.

        Raises:
            UsageError: no such split.
            StoreError: rows are missing and `data.require` is "all".
        """
        stages = store.stages()
        for stream in config.streams:
            if stream not in stages:
                raise UsageError(
                    f"data.streams: '{stream}' is not in {store.path}; {nearest(stream, stages)}"
                )
        for side, asked in (("narratives", config.narratives), ("events", config.events)):
            if asked and side not in stages:
                raise UsageError(
                    f"data.{side}=true, but {store.path} holds no {side}; make them with "
                    f"`pipeline run --stage {side}`"
                )
        samples = MomentDataset(
            store,
            name,
            streams=config.streams,
            narratives=config.narratives,
            events=config.events,
            require=config.require,
            max_clips=config.max_clips,
            max_tokens=config.max_tokens,
        )
        for sentence in [*samples.report.sentences(), *missing_sentences(samples.missing)]:
            tell(f"split '{name}': {sentence}")
        kept = {each.qid for each in samples.annotations}
        return cls(name, samples, [each for each in store.annotations(name) if each.qid in kept])

    def infos(self) -> list[QueryInfo]:
        """What a prediction must carry, for every query; reads no features."""
        rows = self.samples.annotations
        return [query_info(each, self.samples.grid(each.video_id)) for each in rows]


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
        self.dataset = dataset_of(self.store.dataset)
        if self.dataset.name != self.store.dataset:
            tell(
                f"dataset '{self.store.dataset}' has no scoring of its own here "
                f"({', '.join(DATASETS)} have): predictions are not rounded, and the metrics are "
                "those of QVHighlights, unless eval.round_to_clip and eval.metrics say otherwise"
            )
        self.device = device_of(config.loop.device)
        if config.loop.precision == "float16" and self.device.type == "cpu":
            raise UsageError(
                f"loop.precision=float16 needs a GPU, and loop.device={config.loop.device} is the "
                "CPU here; use loop.precision=bfloat16 or float32"
            )

    def split(self, name: str) -> Split:
        """A split of the store, with its features."""
        return Split.open(self.store, self.config.data, name, self.tell)

    @cached_property
    def train(self) -> Split:
        """The training split."""
        return self.split(self.config.data.train)

    def hold(self, split: Split) -> Queries:
        """The features of a split, on the device if they fit."""
        data = self.config.data
        queries = hold(split.samples, self.device, data.cache, data.workers)
        self.tell(f"split '{split.name}': {queries.about}")
        return queries

    def task(self, split: Split) -> RetrievalTask:
        """The model at its seeded initialisation, for the feature widths of `split`."""
        loop = self.config.loop
        torch.manual_seed(loop.seed)
        model = build_model(self.config.model, split.samples).to(self.device)
        return RetrievalTask(
            model,
            decoding_of(model, self.config.eval, self.dataset.post),
            device=self.device,
            precision=loop.precision,
            compile=loop.compile,
            world=self.world,
        )

    def order(self, split: Split) -> Order:
        """All queries of a split as they come."""
        return Order(len(split.samples), self.config.eval.batch_size, shuffle=False)

    def score(
        self, split: Split, predictions: Sequence[Prediction], *, extended: bool = False
    ) -> Scores:
        """Scores of predictions for a split, whoever made them."""
        chosen = self.config.eval
        return score(
            split.annotations,
            predictions,
            metrics=chosen.metrics or self.dataset.name,
            clip_len_s=self.store.clip_len_s,
            mode=chosen.mode,
            extended=extended,
        )

    def check_disjoint(self, split: Split, *, allow: bool) -> None:
        """Refuse a split that shares videos with the training split."""
        trained = self.store.annotations(self.config.data.train)
        note = check_disjoint(trained, split.annotations, split.name, allow=allow)
        if note:
            self.tell(note)


def fit(
    config: TrainerConfig,
    out: Path,
    *,
    resume: bool,
    allow_overlap: bool,
    tell: Tell,
    report: Callable[[Progress], AbstractContextManager[Reporter]],
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
        report: gives the reporter of a run that stands at some progress, while it goes on.
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
    task = session.task(session.train)
    _rehearse(session, split)
    queries = session.hold(session.train)
    validator = Validator(
        task, session.hold(split), session.order(split), partial(session.score, split)
    )

    about = environment(session.device, world.size, session.train.samples.recipes)
    about["queries_left_out"] = {
        each.name: each.samples.report.dropped_queries for each in (session.train, split)
    }
    run = _open_run(out, config, about, resume=resume, world=world)
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
    with report(progress) as loop.report:
        return run, loop.fit(progress)


def predict_run(session: Session, run: Run, split: Split, which: Which) -> list[Prediction]:
    """Predictions of a trained run for a split, with or without ground truth."""
    task = _trained(session, run, split, which)
    return predict(task, session.hold(split), session.order(split))


def predict_untrained(session: Session, split: Split) -> list[Prediction]:
    """Predictions of the model at its initialisation."""
    return predict(session.task(split), session.hold(split), session.order(split))


def predict_blind(session: Session, split: Split) -> list[Prediction]:
    """Predictions of the moment prior of the training split."""
    grid = session.train.samples.grid
    truths = [
        QueryTruth.of(each, grid(each.video_id).n, grid(each.video_id).clip_len_s)
        for each in session.train.samples.annotations
    ]
    blind = BlindBaseline.fit([each for each in truths if each is not None])
    return [rounded(blind.predict(each)) for each in split.infos()]


def _trained(session: Session, run: Run, split: Split, which: Which) -> RetrievalTask:
    changed = _changed(run.about["features"], split.samples.recipes)
    if changed:
        session.tell(f"the features are not those of the training: {changed}")
    task = session.task(split)
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
        select=config.eval.select,
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


def _rehearse(session: Session, split: Split) -> None:
    """Find faults of the annotations before training, by scoring made-up predictions."""
    blind = [each.qid for each in session.train.annotations if not each.windows]
    if blind:
        raise UsageError(
            f"{len(blind)} queries of split '{session.train.name}' have no ground-truth moment "
            f"(first: {blind[0]}); nothing can be learned from them"
        )
    made_up = [
        Prediction(each.qid, each.query, each.video_id, ((0.0, 1.0, 1.0),), (0.0,) * each.grid.n)
        for each in split.infos()
    ]
    select, brief = session.config.eval.select, session.score(split, made_up)["brief"]
    if select not in brief:
        raise UsageError(f"eval.select: unknown metric '{select}'; {nearest(select, brief)}")
    if brief[select] is None:
        raise UsageError(
            f"eval.select={select}: no query of split '{split.name}' counts in this metric; "
            "choose another, e.g. MR-full-mAP"
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
