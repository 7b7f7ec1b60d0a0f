"""Which stages run, in which order: what is asked for, and what that reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.errors import UsageError, nearest
from data.store import Recipe
from pipeline.stage import STAGES, FrameStage, Stage, StageContext, StageSet

__all__ = ["FEATURES", "PROBE", "Program"]

PROBE = "probe"
"""The stage whose rows say what is in a media file; later stages get it as `Item.facts`."""

FEATURES = ("clip", "slowfast", "i3d")
"""What `--stage features` means."""


@dataclass(frozen=True)
class Program:
    """The stages of a run in an order in which each comes after what it reads.

    Args:
        stages: the stages.
        recipes: recipe of each of them.
        because: for stages that were not asked for, which stage needs them.
    """

    stages: tuple[Stage, ...]
    recipes: Mapping[str, Recipe]
    because: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def build(
        context: StageContext, options: Mapping[str, Any], asked: Sequence[str] = ()
    ) -> Program:
        """The program for the stages that are asked for, and for what they read.

        Args:
            context: facts of the job.
            options: options of each configured stage.
            asked: names of stages, or `features`; nothing means all configured stages.

        Raises:
            UsageError: unknown stage, or stages that read each other in a circle.
        """
        names = _expand(asked, options)
        made: dict[str, Stage] = {}
        because: dict[str, str] = {}
        for name in names:
            _add(name, context, options, made, because, ())
        because = {name: reader for name, reader in because.items() if name not in names}
        recipes: dict[str, Recipe] = {}
        for name, stage in made.items():
            recipes[name] = stage.recipe({up: recipes[up].id for up in stage.upstream})
        return Program(_frames_together(made), recipes, because)

    @property
    def sets(self) -> list[StageSet]:
        """The stages in groups that share one decode of each video."""
        return StageSet.group(self.stages)


def _expand(asked: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for name in asked or list(options):
        if name == "features":
            names += [each for each in FEATURES if each in STAGES]
        elif name in STAGES:
            names.append(name)
        else:
            hint = nearest(name, [*STAGES, "features"])
            raise UsageError(f"unknown stage '{name}'; {hint}")
    return list(dict.fromkeys(names))


def _add(
    name: str,
    context: StageContext,
    options: Mapping[str, Any],
    made: dict[str, Stage],
    because: dict[str, str],
    path: tuple[str, ...],
) -> None:
    """Depth first: what a stage reads stands before it."""
    if name in path:
        raise UsageError(f"stages read each other in a circle: {' -> '.join((*path, name))}")
    if name in made:
        return
    kind = STAGES.get(name)
    stage = kind(context, options[name] if name in options else kind.Options())
    for upstream in stage.upstream:
        because.setdefault(upstream, name)
        _add(upstream, context, options, made, because, (*path, name))
    made[name] = stage


def _frames_together(made: Mapping[str, Stage]) -> tuple[Stage, ...]:
    """Frame stages that read nothing but the probe come right after it, so that they meet."""
    early = [
        stage
        for stage in made.values()
        if stage.upstream == () or (isinstance(stage, FrameStage) and stage.upstream == (PROBE,))
    ]
    first = [stage for stage in early if not isinstance(stage, FrameStage)]
    frames = [stage for stage in early if isinstance(stage, FrameStage)]
    shared = [stage for stage in frames if type(stage).parts is Stage.parts]
    alone = [stage for stage in frames if type(stage).parts is not Stage.parts]
    rest = [stage for stage in made.values() if stage not in early]
    return (*first, *shared, *alone, *rest)
