"""Training from a configuration to a finished run directory, or the rest of the way to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.errors import UsageError
from data.store.place import anchored
from training.config import TrainerConfig
from training.data import Order, Queries
from training.distributed import ALONE, World
from training.loop import Loop, Progress, Reporter
from training.rehearsal import rehearse
from training.retrieval_task import RetrievalTask
from training.run import Run, environment
from training.schedule import make_schedule
from training.session import Session
from training.split import Split, Tell
from training.stopping import Stop
from training.trained_on import recall, remember
from training.validate import Validator

__all__ = ["fit"]

MAY_CHANGE = {
    "data.store",
    "data.cache",
    "data.workers",
    "loop.device",
    "loop.epochs",
    "loop.save_every",
}
"""Options with which a run may be resumed differently: where and how long, not what."""


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
    config = _anchored(config)
    if resume and Run.is_at(out):
        _check_same(_trained_here(out).config, config, out)
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

    about = _about(session, split, selected_by)
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


def _trained_here(out: Path) -> Run:
    run = Run.open(out)
    if run.imported:
        raise UsageError(
            f"'{out}' was imported from {run.imported} and has no optimiser to continue with; "
            "use it with `trainer predict` and `evaluate`, or train a run of its configuration "
            f"with `trainer fit --config {out}/config.yaml`"
        )
    return run


def _anchored(config: TrainerConfig) -> TrainerConfig:
    """The configuration with the store by a path that holds in every folder."""
    store = anchored(config.data.store)
    return config.model_copy(update={"data": config.data.model_copy(update={"store": store})})


def _about(session: Session, split: Split, selected_by: str) -> dict[str, Any]:
    """What `environment.json` says; see `training.run`."""
    splits = (session.train, split)
    return {
        **environment(session.device, session.world.size, session.train.samples.recipes),
        "selected_by": selected_by,
        "moments": session.shows_moments,
        "mended": session.train.mending,
        "queries_left_out": {each.name: each.samples.report.dropped_queries for each in splits},
    }


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


def _resumed(run: Run, loop: Loop) -> Progress:
    with run.explained():
        return loop.restore(run.checkpoint("last", loop.device))


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
    out: Path, config: TrainerConfig, about: Mapping[str, Any], *, resume: bool, world: World
) -> Run:
    if not (resume and world.share(Run.is_at(out))):
        return Run.create(out, config, about) if world.leads else Run(out, config, about)
    run = Run.open(out)
    changed = run.changed_features(about["features"])
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
