"""The directory of a run: everything that `trainer fit` leaves behind. The report reads it.

    config.yaml                 the whole configuration, defaults included
    environment.json            versions, device, processes, recipe ids of the features, and how
                                many queries of each split were left out for lack of features;
                                `selected_by`: the metric that chooses the best epoch; `moments`:
                                whether the training split has any; `mended`: what was done to them
    trained_on.json             the videos, recordings and queries of the training split
                                (`training.trained_on`)
    left_out.json               which videos and queries those are, by split and stage, where
                                `--require any` left some out
    history.jsonl               one line per epoch: epoch (from 1), step, lr, losses {name: mean},
                                seconds, val {brief metrics} or null where it was not evaluated
    tensorboard/                the same as scalars
    checkpoints/last.pt         where `--resume` continues
    checkpoints/best.pt         the epoch that `selected_by` chose
    predictions/val-best.jsonl  its predictions for the evaluation split, submission format
    metrics.json                there when the run is finished: {"best": scores, "last": scores,
                                "selected_by": name, "epoch_best": n, "epoch_last": n,
                                "mode": name, "split": name}; scores in the official nesting,
                                null where no query counts

A run of `trainer import-checkpoint` has less (`training.imported`), and `imported` in its
environment. All but the tensorboard folder are replaced whole, so a killed run leaves readable
files.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data.config import dump_config, load_config, parse_config, parse_yaml
from data.errors import UsageError
from data.foreign import read_limited, strict_json
from data.store.files import atomic_write
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import TrainerConfig
from training.loop import Progress
from training.predictions import write_predictions
from training.validate import Evaluation

__all__ = ["Run", "environment"]

Which = Literal["best", "last"]

_MAX_BYTES = 1 << 20
"""Of `environment.json`, which has a few lines."""


class Run:
    """A run's directory.

    Args:
        path: of the directory.
        config: of the run.
        about: what `environment` gave when it started.
    """

    def __init__(self, path: Path, config: TrainerConfig, about: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config
        self.about = about

    @classmethod
    def create(cls, path: Path, config: TrainerConfig, about: Mapping[str, Any]) -> Run:
        """Start a new directory; one that holds anything is left alone.

        Raises:
            UsageError: `path` exists and is not an empty folder, or one in which a run was killed
                before it began.
        """
        cls.refuse_taken(path)
        atomic_write(path / "environment.json", _json(about))
        run = cls(path, config, about)
        run.keep_config()
        return run

    def keep_left_out(self, missing: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """List the ids without features, by split and stage; no file if there are none."""
        if any(missing.values()):
            atomic_write(self.path / "left_out.json", _json(missing))

    @classmethod
    def refuse_taken(cls, path: Path) -> None:
        """The check of `create` alone, for before the features are read."""
        if path.exists() and not (path.is_dir() and _is_bare(path)):
            hint = "continue it with --resume, or " if cls.is_at(path) else ""
            raise UsageError(
                f"'{path}' exists already and nothing in it is deleted; {hint}choose another "
                "folder with --out"
            )

    @classmethod
    def open(cls, path: Path, overrides: Sequence[str] = ()) -> Run:
        """An existing run.

        Args:
            path: of the directory.
            overrides: as in `data.config.load_config`, e.g. where the store is now.

        Raises:
            UsageError: `path` is not the directory of a run.
        """
        if not cls.is_at(path):
            raise UsageError(
                f"'{path}' is not the folder of a run: it has no config.yaml; give the folder "
                "that `trainer fit --out` wrote"
            )
        trained = load_config(TrainerConfig, path / "config.yaml")
        config = load_config(TrainerConfig, path / "config.yaml", overrides)
        changed = _differences(trained, config)
        if changed:
            raise UsageError(
                f"--set cannot change what '{path}' was trained as: {changed}. Train another run, "
                "or leave it out"
            )
        return cls(path, config, _about(path / "environment.json"))

    def checkpoint(self, which: Which, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The state of the best or the last epoch.

        Raises:
            UsageError: it was not written, is damaged, or is of a run that trained another model.
        """
        path = self._checkpoint_path(which)
        state = load_checkpoint(path, device)
        source = f"the configuration in '{path}'"
        written = parse_yaml(str(state.get("config", "")), source)
        changed = _differences(parse_config(TrainerConfig, written, source=source), self.config)
        if changed:
            raise UsageError(f"'{path}' is a checkpoint of another run: {changed}")
        return state

    def keep_config(self) -> None:
        """Write the configuration; if it changes, scores of a run before that one are dropped."""
        path, text = self.path / "config.yaml", dump_config(self.config).encode()
        if not path.is_file() or path.read_bytes() != text:
            (self.path / "metrics.json").unlink(missing_ok=True)
            atomic_write(path, text)

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether a run was started in a folder."""
        return (path / "config.yaml").is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume."""
        return self._checkpoint_path("last").is_file()

    @property
    def selected_by(self) -> str:
        """The brief metric that chooses the best epoch.

        Raises:
            UsageError: neither the configuration nor `environment.json` says.
        """
        found = self.config.eval.select or self.about.get("selected_by")
        if not isinstance(found, str):
            raise UsageError(
                f"'{self.path / 'environment.json'}' should say by which metric the best epoch is "
                "chosen ('selected_by') and does not; take it from a copy, or train again"
            )
        return found

    @property
    def shows_moments(self) -> bool:
        """Whether the model was shown moments; runs of before there was a question were."""
        return bool(self.about.get("moments", True))

    @property
    def imported(self) -> str | None:
        """The public checkpoint that the run was made of; None if it was trained here."""
        found = self.about.get("imported")
        return str(found["checkpoint"]["file"]) if found else None

    def changed_features(self, now: Mapping[str, str]) -> str:
        """Which stages have other recipes now than those trained on, in words; "" if none, or if it
        is not known because the run was imported."""
        if self.imported:
            return ""
        before = self.about["features"]
        return "; ".join(
            f"{stage} had recipe {before.get(stage)} and has {now.get(stage)}"
            for stage in sorted(before.keys() | now.keys())
            if before.get(stage) != now.get(stage)
        )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what torch raises about a checkpoint that does not fit into a sentence."""
        try:
            yield
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UsageError(
                f"a checkpoint of {self.path} does not fit the model of its configuration and "
                f"these features: {' '.join(str(error).split())[:300]}; is it from another run?"
            ) from None

    @property
    def predictions_path(self) -> Path:
        """Predictions of the best epoch."""
        return self.path / "predictions" / "val-best.jsonl"

    # what the loop calls to keep things

    def save(self, which: str, state: Callable[[], dict[str, Any]]) -> None:
        """Write a checkpoint with the configuration and the environment in it."""
        extra = {"config": dump_config(self.config), "environment": json.dumps(self.about)}
        save_checkpoint(self._checkpoint_path(which), {**state(), **extra})

    def record(self, progress: Progress) -> None:
        """Write the history; the scores when there is nothing left to train."""
        lines = "".join(json.dumps(each) + "\n" for each in progress.history)
        atomic_write(self.path / "history.jsonl", lines.encode())
        if progress.epoch >= self.config.loop.epochs:
            atomic_write(self.path / "metrics.json", _json(self._metrics(progress)))

    def predictions(self, evaluation: Evaluation) -> None:
        """Write the predictions of the best epoch so far."""
        write_predictions(self.predictions_path, evaluation.predictions)

    def _metrics(self, progress: Progress) -> dict[str, Any]:
        best, last = progress.best or {}, progress.last or {}
        return {
            "best": best.get("scores"),
            "last": last.get("scores"),
            "selected_by": self.selected_by,
            "epoch_best": best.get("epoch"),
            "epoch_last": last.get("epoch"),
            "mode": self.config.eval.mode,
            "split": self.config.eval.split,
        }

    def _checkpoint_path(self, which: str) -> Path:
        return self.path / "checkpoints" / f"{which}.pt"


def _trained_as(config: TrainerConfig) -> dict[str, Any]:
    """What the weights of a run mean nothing without."""
    chosen = {"train", "hold_out", "where", "streams", "other_texts", "narratives", "events"}
    chosen |= {"event_depth", "normalise"}
    data = config.data.model_dump(include=chosen)
    flat = {f"data.{key}": value for key, value in data.items()}
    return flat | {f"model.{key}": value for key, value in config.model.model_dump().items()}


def _differences(before: TrainerConfig, now: TrainerConfig) -> str:
    old, new = _trained_as(before), _trained_as(now)
    return "; ".join(
        f"{key} was {old[key]} and is {new[key]}" for key in old if old[key] != new[key]
    )


def _about(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = strict_json(read_limited(path, _MAX_BYTES, "the environment"))
        features = about["features"]
    except (UsageError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"'{path}' should say which features the run was trained on and cannot be read "
            f"({error!r}); take it from a copy, or train again"
        ) from None
    return {**about, "features": dict(features)}


def _is_bare(folder: Path) -> bool:
    return all(
        each.name == "environment.json" or each.name.startswith(".") for each in folder.iterdir()
    )


def environment(
    device: torch.device, world_size: int, features: Mapping[str, str]
) -> dict[str, Any]:
    """What a result depends on beside the configuration.

    Args:
        device: of the run.
        world_size: number of processes.
        features: recipe id of each stage that is read.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": f"{device.type} ({name})",
        "processes": world_size,
        "features": dict(features),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
