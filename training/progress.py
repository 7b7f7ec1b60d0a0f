"""What a person sees of a training run: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data.errors import UsageError, how_to_install
from data.terminal import decimals_of, new_table
from training.loop import Reporter

__all__ = ["Everyone", "LiveReporter", "Scalars", "scores_table"]

SHOWN = (
    *("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7", "HL-min-VeryGood-mAP"),
    *("R1@0.5", "R1@0.7"),
)
"""Brief metrics on the line of an epoch, after the one that chooses the best."""


class LiveReporter:
    """One line per epoch, and on a terminal a bar for the epoch and one for the run.

    Args:
        console: where to write.
        epochs: of the whole run.
        done: epochs that an earlier part of the run finished.
        select: brief metric that chooses the best epoch.
    """

    def __init__(self, console: Console, epochs: int, done: int, select: str) -> None:
        self._console = console
        self._epochs = epochs
        self._shown = dict.fromkeys((select, *SHOWN))
        self._seconds: list[float] = []
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._run = self._bars.add_task("epochs", total=epochs, completed=done)
        self._batches = self._bars.add_task("batches", total=None)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bars while the run goes on."""
        with self._bars:
            yield

    def step(self, epoch: int, batch: int, batches: int) -> None:
        """Move the bar of the epoch."""
        self._bars.update(self._batches, total=batches, completed=batch)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the line of the epoch."""
        self._seconds.append(record["seconds"])
        self._bars.update(self._run, completed=record["epoch"])
        self._console.print(self._line(record), soft_wrap=True)

    def _line(self, record: Mapping[str, Any]) -> str:
        # the same terms of earlier decoder layers (name_0, ...) are in the history only
        losses = {k: v for k, v in record["losses"].items() if not k[-1].isdigit()}
        terms = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        val = record["val"] or {}
        shown = {name: val[name] for name in self._shown if val.get(name) is not None}
        decimals = decimals_of(val.values())
        scores = "  ".join(f"{name} {value:.{decimals}f}" for name, value in shown.items())
        # the slowest part of a run is often its first epoch, so only the latest ones are counted
        recent = self._seconds[-5:]
        left = (self._epochs - record["epoch"]) * sum(recent) / len(recent)
        return (
            f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs} | {terms} | "
            + (f"{scores} | " if scores else "")
            + f"{record['seconds']:.1f} s/epoch, ETA {_clock(left)}"
        )


class Scalars:
    """Losses, rate and scores as TensorBoard scalars.

    Args:
        folder: of the event files.
        done: epochs that are kept; later ones of an earlier part of the run are dropped.
    """

    def __init__(self, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise UsageError(
                f"scalars are written for TensorBoard, which cannot be imported ({error}); install "
                f"the trainer with its needs: {how_to_install('trainer')}"
            ) from None

        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1)

    def step(self, epoch: int, batch: int, batches: int) -> None:
        """Nothing; scalars are per epoch."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """One point per loss and score."""
        at = record["epoch"]
        self._writer.add_scalar("lr", record["lr"], at)
        for group, values in (("loss", record["losses"]), ("val", record["val"] or {})):
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(f"{group}/{name}", value, at)
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()


class Everyone:
    """Several reporters as one."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = reporters

    def step(self, epoch: int, batch: int, batches: int) -> None:
        """Tell each."""
        for each in self._reporters:
            each.step(epoch, batch, batches)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Tell each."""
        for each in self._reporters:
            each.epoch(record)


def scores_table(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """Brief metrics side by side.

    Args:
        columns: brief metrics by the heading of their column.
    """
    table = new_table("", "metric", *(f"{heading}>" for heading in columns))
    names = dict.fromkeys(name for values in columns.values() for name in values)
    decimals = decimals_of(value for values in columns.values() for value in values.values())
    for name in names:
        row = [columns[heading].get(name) for heading in columns]
        table.add_row(name, *("-" if value is None else f"{value:.{decimals}f}" for value in row))
    return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
