"""What models that reason write before their answer, and how to leave it out."""

from __future__ import annotations

__all__ = ["after_thinking", "thinks"]

_THINK, _THOUGHT = "<think>", "</think>"


def thinks(prompt: str) -> bool:
    """Whether a prompt ends in the sign that thinking begins, as some chat templates do."""
    return prompt.rstrip().endswith(_THINK)


def after_thinking(said: str, *, thinking: bool = False) -> str:
    """What was said after thinking; nothing if the limit of tokens came before.

    Args:
        said: as it was generated.
        thinking: whether the prompt began the thinking (`thinks`).
    """
    if _THOUGHT in said:
        return said.rsplit(_THOUGHT, 1)[1]
    return "" if thinking or said.lstrip().startswith(_THINK) else said
