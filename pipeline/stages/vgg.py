"""`vgg`: fc7 features of VGG16 for one or more frames of each clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pipeline.stage import STAGES
from pipeline.stages.features import BackboneStage

__all__ = ["VggStage"]


@STAGES.register("vgg")
class VggStage(BackboneStage):
    """VGG16 fc7 features of the frame at the centre of each clip, or of the mean of several."""

    name = "vgg"
    stream = "vgg"
    dims: ClassVar[Mapping[str, int]] = {"full": 4096, "tiny": 256}
