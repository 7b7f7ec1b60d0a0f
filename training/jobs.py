"""What `trainer fit`, `predict` and `evaluate` of models do. The commands import this when they are
called: it needs torch, which takes seconds to import, and commands on files do not.
"""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from data.annotations.jsonl import jsonl_bytes
from data.config import load_config
from data.errors import UsageError
from data.terminal import plain_console
from training.config import TrainerConfig, shipped_or_file
from training.distributed import World, joined
from training.evaluate import Found
from training.fit import fit
from training.loop import Progress, Reporter, Silent
from training.options import tell
from training.predictions import Prediction, write_predictions
from training.progress import Everyone, LiveReporter, Scalars, scores_table
from training.run import Run, Which
from training.session import Session, predict_blind, predict_run, predict_untrained
from training.split import Split
from training.stopping import StoppedError, stop_on_signals

__all__ = ["evaluate_model", "fit_model", "predict_split"]


def fit_model(
    config: Path | None, chosen: Sequence[str], out: Path, *, resume: bool, allow_overlap: bool
) -> None:
    """Train; `training.fit.fit` with a console.

    Args:
        config: the file; None: that of the run in `out`.
        chosen: `a.b=value`, instead of values of the configuration.
        out: folder of the run.
        resume: continue the run in `out`.
        allow_overlap: score on videos that were trained on, too.

    Raises:
        StoppedError: asked to stop; says how to continue.
    """
    loaded = _configuration(config, chosen, out)
    with joined() as world, stop_on_signals() as stop:
        console = plain_console(quiet=not world.leads)
        try:
            run, progress = fit(
                loaded,
                out,
                resume=resume,
                allow_overlap=allow_overlap,
                tell=functools.partial(tell, console),
                report=functools.partial(_reporting, console, world, loaded.loop.epochs, out),
                stop=stop,
                world=world,
            )
        except StoppedError as error:
            again = f"trainer fit --resume --out {shlex.quote(str(out))}"
            again += " --allow-overlap" * allow_overlap
            raise StoppedError(f"{error}; to continue:\n  {again}") from None
        _summarise(console, run, progress)


def predict_split(
    run: Path, chosen: Sequence[str], split: str, out: Path, *, which: Which, allow_overlap: bool
) -> None:
    """Write the predictions of a run for a split; arguments as the options of `trainer predict`."""
    console = plain_console()
    opened = Run.open(run, chosen)
    session = Session(opened.config, functools.partial(tell, console))
    part = session.split(split)
    session.check_disjoint(part, allow=allow_overlap, run=opened)
    found = predict_run(session, opened, part, which)
    write_predictions(out, found)
    tell(console, f"{len(found)} predictions are in {out}")


def evaluate_model(
    run: Path | None,
    config: Path | None,
    chosen: Sequence[str],
    tell: Callable[[str], None],
    *,
    split: str | None,
    which: Which,
    untrained: bool,
    blind: bool,
    allow_overlap: bool,
) -> Found:
    """Measure a run, or a baseline of a configuration; arguments as the options of `trainer
    evaluate`.
    """
    if run is None and untrained == blind:
        raise UsageError("evaluate --config needs one of --untrained and --blind")
    opened = Run.open(run, chosen) if run else None
    loaded = opened.config if opened else _configuration(config, chosen, None)
    session = Session(loaded, tell)
    part = session.split(split or loaded.eval.split)
    overlap = session.check_disjoint(part, allow=allow_overlap, run=opened)
    session.tell_faults(part)
    if opened:
        found = _of_run(session, opened, part, which)
    else:
        found = _of_baseline(session, part, blind=blind)
    found.about.update({"overlap": overlap} if overlap else {})
    return found


def _configuration(
    config: Path | None, overrides: Sequence[str] | None, run: Path | None
) -> TrainerConfig:
    """The configuration of a file, or of a run.

    Raises:
        UsageError: neither was given, or it is wrong.
    """
    if config is not None:
        return load_config(TrainerConfig, shipped_or_file(config), overrides or ())
    if run is None:
        raise UsageError("a configuration is needed: give --config FILE")
    return Run.open(run, overrides or ()).config


def _of_run(session: Session, run: Run, split: Split, which: Which) -> Found:
    predictions = predict_run(session, run, split, which)
    title = f"{run.path}, {which} checkpoint, split '{split.name}'"
    about = {"run": str(run.path), "checkpoint": which, **_about(session, split)}
    return Found(title, session.measure(split, predictions), about)


def _of_baseline(session: Session, split: Split, *, blind: bool) -> Found:
    title, predictions = _baseline(session, split, blind=blind)
    measured = session.measure(split, predictions)
    return Found(f"{title}, split '{split.name}'", measured, _about(session, split))


def _baseline(session: Session, split: Split, *, blind: bool) -> tuple[str, list[Prediction]]:
    if blind:
        return "blind baseline (moment prior)", predict_blind(session, split)
    return "untrained model", predict_untrained(session, split)


def _about(session: Session, split: Split) -> dict[str, Any]:
    about: dict[str, Any] = {
        "mode": session.config.eval.mode,
        "metrics": session.metrics,
        "dataset": session.store.dataset,
        "split": split.name,
        "annotations": {"sha256": hashlib.sha256(jsonl_bytes(split.annotations)).hexdigest()},
    }
    option, where = session.where(split.name)
    if where:
        about[option] = where
    if split.samples.report.dropped_queries:
        about["queries_left_out"] = split.samples.report.dropped_queries
        about["left_out"] = split.samples.missing
    return about


@contextmanager
def _reporting(
    console: Console, world: World, epochs: int, out: Path, progress: Progress, select: str
) -> Iterator[Reporter]:
    """Lines, bars and TensorBoard while a run goes on; nothing where this process does not lead."""
    if not world.leads:
        yield Silent()
        return
    live = LiveReporter(console, epochs, progress.epoch, select)
    scalars = Scalars(out / "tensorboard", progress.epoch)
    with live.shown(), closing(scalars):
        yield Everyone([live, scalars])


def _summarise(console: Console, run: Run, progress: Progress) -> None:
    best, last = progress.best, progress.last
    columns = {}
    if best:
        columns[f"best (epoch {best['epoch']})"] = best["scores"]["brief"]
    if last:
        columns[f"last (epoch {last['epoch']})"] = last["scores"]["brief"]
    chosen = run.config.eval
    tell(console, f"split '{chosen.split}', {chosen.mode} metrics, best by {run.selected_by}")
    console.print(scores_table(columns))
    tell(console, f"checkpoints, history and predictions are in {run.path}")
