"""Learning-rate schedules: the rate as a function of how far training is, without any state.

A schedule that is computed from the step alone has nothing to save and nothing to resume.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from data.config import Group, parse_config
from data.errors import UsageError
from data.registry import Registry

__all__ = ["SCHEDULES", "Schedule", "make_schedule"]


class Schedule(Group, ABC):
    """Options of a schedule; subclasses compute the factor."""

    @abstractmethod
    def factor(self, epoch: int, epochs: int) -> float:
        """What the base rate is multiplied with in an epoch.

        Args:
            epoch: counts from 0.
            epochs: of the whole run.
        """


SCHEDULES: Registry[type[Schedule]] = Registry("schedule")


@SCHEDULES.register("constant")
class Constant(Schedule):
    """The base rate throughout: what the `lr_drop 400` of 200-epoch recipes amounts to."""

    def factor(self, epoch: int, epochs: int) -> float:
        """1."""
        return 1.0


@SCHEDULES.register("step")
class Step(Schedule):
    """The rate is multiplied by `gamma` each `every` epochs (torch's StepLR)."""

    every: int = Field(ge=1, description="Epochs between two drops.")
    gamma: float = Field(0.1, gt=0, le=1, description="What the rate is multiplied with.")

    def factor(self, epoch: int, epochs: int) -> float:
        """`gamma` to the number of drops so far."""
        return float(self.gamma ** (epoch // self.every))


@SCHEDULES.register("cosine")
class Cosine(Schedule):
    """Half a cosine from the base rate down (torch's CosineAnnealingLR, per epoch)."""

    lowest: float = Field(0.0, ge=0, le=1, description="Share of the base rate at the end.")

    def factor(self, epoch: int, epochs: int) -> float:
        """From 1 at epoch 0 towards `lowest` at the last."""
        return self.lowest + (1 - self.lowest) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@SCHEDULES.register("multistep")
class MultiStep(Schedule):
    """The rate is multiplied by `gamma` after each of some epochs (torch's MultiStepLR)."""

    at: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="Numbers of epochs, each once, after which the rate drops."
    )
    gamma: float = Field(0.1, gt=0, le=1, description="What the rate is multiplied with.")

    @field_validator("at")
    @classmethod
    def _each_once(cls, at: tuple[int, ...]) -> tuple[int, ...]:
        if list(at) != sorted(set(at)):
            raise ValueError("epochs must rise, each once")
        return at

    def factor(self, epoch: int, epochs: int) -> float:
        """`gamma` to the number of drops so far."""
        return float(self.gamma ** sum(epoch >= each for each in self.at))


@SCHEDULES.register("linear")
class Linear(Schedule):
    """A straight line from the base rate to 0 after the last epoch (torch's LinearLR)."""

    def factor(self, epoch: int, epochs: int) -> float:
        """From 1 at epoch 0 to 1 / epochs at the last."""
        return 1.0 - epoch / epochs


def make_schedule(options: Mapping[str, Any]) -> Schedule:
    """The schedule called `options["name"]` with the other options.

    Raises:
        UsageError: no or an unknown name, an unknown or wrong option.
    """
    rest = dict(options)
    name = rest.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"optim.schedule needs a 'name'; allowed: {', '.join(SCHEDULES.names())}")
    return parse_config(SCHEDULES.get(name), rest, source=f"optim.schedule '{name}'")
