"""Networks that turn the frames of a clip into one feature vector.

BACKBONES       all of them, by name
create          one of them, by name, checkpoint and options
"""

from __future__ import annotations

from typing import Any

from models.backbones import i3d, slowfast
from models.backbones.base import BACKBONES, Backbone

__all__ = ["BACKBONES", "Backbone"]
