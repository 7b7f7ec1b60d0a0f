"""The generation loop of the captioners that run a language model of transformers.

Engine      prompts in, tokens out
Prompts     embeddings that are made when they are needed
Generated   the tokens of one row
place       a model brought to a device and a type
"""

from __future__ import annotations

from models.captioners.loop.engine import Engine
from models.captioners.loop.lm import place
from models.captioners.loop.types import Generated, Prompts

__all__ = ["Engine", "Generated", "Prompts", "place"]
