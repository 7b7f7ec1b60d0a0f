"""What this machine lacks for the stages that have something to do, before anything is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterable

from data.errors import UsageError
from pipeline.config import PipelineConfig
from pipeline.stage import FrameStage, Stage

__all__ = ["lacks", "notices_of"]


def lacks(config: PipelineConfig, stages: Iterable[Stage]) -> tuple[str, ...]:
    """One sentence for each thing that is asked for and not here; () where other machines work.

    Args:
        config: says who works, and which decoder is used.
        stages: those that have something to do.
    """
    engine = config.engine
    if engine.executor == "ray" and (engine.address or os.environ.get("RAY_ADDRESS")):
        return ()
    stages = list(stages)
    found = {_said(stage) for stage in stages}
    if any(isinstance(stage, FrameStage) or stage.name == "probe" for stage in stages):
        found.add(_decoder_lacks(config.decode.backend))
    return tuple(sorted(found - {""}))


def notices_of(stages: Iterable[Stage]) -> tuple[str, ...]:
    """What a user should know before these stages begin."""
    return tuple(stage.notice for stage in stages if stage.notice)


def _said(stage: Stage) -> str:
    try:
        stage.check_machine()
    except UsageError as error:
        return f"stage '{stage.name}': {error}"
    return ""


def _decoder_lacks(name: str) -> str:
    from data.video import open_decoder

    if ":" in name:  # code of one's own is imported where it decodes, in a child process
        return ""
    try:
        open_decoder(name)
    except UsageError as error:
        return f"decode.backend '{name}': {error}"
    return ""
