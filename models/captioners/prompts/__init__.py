"""Prompts as files: `<id>.txt`, one instruction per line, lines with `#` tell where they are from.

A file that has been used is not edited; another wording is another id.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from data.errors import UsageError, nearest

__all__ = ["Prompt", "load_prompt", "prompt_ids"]


@dataclass(frozen=True)
class Prompt:
    """What a captioner is asked.

    Args:
        id: name of the file without `.txt`.
        instructions: one or more; with several, each caption is asked one of them.
    """

    id: str
    instructions: tuple[str, ...]


def prompt_ids() -> list[str]:
    """All prompts that ship, sorted."""
    files = (each.name for each in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".txt") for name in files if name.endswith(".txt"))


def load_prompt(prompt_id: str) -> Prompt:
    """The prompt called `prompt_id`; UsageError with the nearest known id if there is none."""
    if prompt_id not in prompt_ids():
        raise UsageError(f"unknown prompt '{prompt_id}'; {nearest(prompt_id, prompt_ids())}")
    text = resources.files(__name__).joinpath(f"{prompt_id}.txt").read_text("utf-8")
    lines = [line.strip() for line in text.splitlines() if not line.startswith("#")]
    return Prompt(prompt_id, tuple(line for line in lines if line))
