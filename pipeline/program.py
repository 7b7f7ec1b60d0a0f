"""Which stages run, in which order: what is asked for, and what that reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.errors import UsageError, nearest
from data.store import Recipe
from pipeline.stage import STAGES, FrameStage, Given, Stage, StageContext, StageSet

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
        context: StageContext,
        options: Mapping[str, Any],
        asked: Sequence[str] = (),
        imported: Mapping[str, Recipe] | None = None,
    ) -> Program:
        """The program for the stages that are asked for, and for what they read.

        Args:
            context: facts of the job.
            options: options of each configured stage.
            asked: names of stages, or `features`; nothing means all configured stages.
            imported: recipes of imported rows that the store's readers are sent to. Those of
                stages that are only read are taken as they are, and nothing is made of them.

        Raises:
            UsageError: unknown stage, or stages that read each other in a circle.
        """
        names = _expand(asked, options)
        made: dict[str, Stage] = {}
        because: dict[str, str] = {}
        for name, recipe in (imported or {}).items():
            if name not in names:
                made[name] = Given(context, recipe)
        for name in names:
            _add(name, context, options, made, because, ())
        made = {name: stage for name, stage in made.items() if name in {*because, *names}}
        because = {name: reader for name, reader in because.items() if name not in names}
        recipes: dict[str, Recipe] = {}
        for name, stage in made.items():
            recipes[name] = stage.recipe({up: recipes[up].id for up in stage.upstream})
        return Program(_frames_together(made), recipes, because)

    @property
    def sets(self) -> list[StageSet]:
        """The stages in groups that share one decode of each video."""
        return StageSet.group(each for each in self.stages if not isinstance(each, Given))


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
    if name not in STAGES and path:
        raise UsageError(
            f"stage '{path[-1]}' reads '{name}', which is no stage and was not imported into this "
            f"store; {nearest(name, {*STAGES, *made})}. Features of your own come into the store "
            f"with `pipeline import --stage {name}`"
        )
    kind = STAGES.get(name)
    stage = kind(context, options[name] if name in options else kind.Options())
    for upstream in stage.upstream:
        because.setdefault(upstream, name)
        _add(upstream, context, options, made, because, (*path, name))
    made[name] = stage


def _frames_together(made: Mapping[str, Stage]) -> tuple[Stage, ...]:
    """Frame stages that read nothing but the probe come right after it, so that they meet;
    imported rows come after the probe, which says of what content a video is.
    """
    early = [
        stage
        for stage in made.values()
        if stage.upstream == () or (isinstance(stage, FrameStage) and stage.upstream == (PROBE,))
    ]
    first = [stage for stage in early if not isinstance(stage, FrameStage)]
    first.sort(key=lambda stage: isinstance(stage, Given))
    frames = [stage for stage in early if isinstance(stage, FrameStage)]
    shared = [stage for stage in frames if type(stage).parts is Stage.parts]
    alone = [stage for stage in frames if type(stage).parts is not Stage.parts]
    rest = [stage for stage in made.values() if stage not in early]
    return (*first, *shared, *alone, *rest)
