"""Prompts as files: one instruction per line, lines that begin with `#` tell where they are from.

`<id>.txt` in this folder ship; anybody's own file serves as well. A shipped file that has been used
is not edited: another wording is another id. One's own may be edited: its words are its id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from data.errors import UsageError, nearest
from data.foreign import read_limited
from data.identity import canonical_json

__all__ = ["Prompt", "is_prompt_file", "load_prompt", "prompt_ids"]

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Prompt:
    """What a captioner is asked.

    Args:
        id: name of a shipped file without `.txt`; `own:` and 12 hex of the words for another.
        instructions: one or more; with several, each caption is asked one of them.
    """

    id: str
    instructions: tuple[str, ...]


def prompt_ids() -> list[str]:
    """All prompts that ship, sorted."""
    files = (each.name for each in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".txt") for name in files if name.endswith(".txt"))


def is_prompt_file(prompt: str) -> bool:
    """Whether a text means a file of one's own, not the id of a prompt that ships."""
    return prompt.endswith(".txt") or "/" in prompt or "\\" in prompt


def load_prompt(prompt: str) -> Prompt:
    """The prompt of an id, or of a file of one's own (`.txt`, or a path).

    Raises:
        UsageError: no such prompt or file, or a file without an instruction.
    """
    if is_prompt_file(prompt):
        return _own(Path(prompt).expanduser())
    if prompt not in prompt_ids():
        raise UsageError(
            f"unknown prompt '{prompt}'; {nearest(prompt, prompt_ids())}; or a file of your own "
            "with one instruction per line (FILE.txt)"
        )
    text = resources.files(__name__).joinpath(f"{prompt}.txt").read_text("utf-8")
    return Prompt(prompt, _instructions(text))


def _own(file: Path) -> Prompt:
    """Called by its words: the same words under another name are the same prompt."""
    try:
        text = read_limited(file, _MOST_BYTES, "the prompt").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt {file} is not text in UTF-8 ({error})") from None
    instructions = _instructions(text)
    if not instructions:
        raise UsageError(
            f"the prompt {file} holds no instruction: write one per line (lines that begin with "
            "'#' are comments; with several, each caption is asked one of them)"
        )
    words = hashlib.blake2b(canonical_json(list(instructions)).encode(), digest_size=6)
    return Prompt(f"own:{words.hexdigest()}", instructions)


def _instructions(text: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.splitlines() if not line.startswith("#")]
    return tuple(line for line in lines if line)
