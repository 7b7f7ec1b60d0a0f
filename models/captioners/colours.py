"""How pixels are normalised: what CLIP took, and what the folder of a model says, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UsageError
from data.foreign import DIGITS_OF_SETTINGS, brief, json_object, read_limited

__all__ = ["CLIP_MEAN", "CLIP_STD", "Colours", "colours_of"]

Colours = tuple[float, ...]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's CLIP, which most towers follow: of red, green and blue in [0, 1]."""

_FILES = ("preprocessor_config.json", "processor_config.json")
"""Of image processors; transformers 5 writes them into the second one, as a part."""

_MAX_BYTES = 1 << 20


def colours_of(folder: Path) -> tuple[Colours, Colours]:
    """Mean and deviation that the image processor in a folder has; CLIP's where it says nothing.

    Raises:
        UsageError: not three numbers between 0 and 1.
    """
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            continue
        content = read_limited(path, _MAX_BYTES, "the settings of the image processor")
        told = json_object(content, str(path), digits=DIGITS_OF_SETTINGS)
        part = told.get("image_processor", told)
        if isinstance(part, dict) and {"image_mean", "image_std"} & part.keys():
            return (
                _three(path, part, "image_mean", CLIP_MEAN),
                _three(path, part, "image_std", CLIP_STD),
            )
    return CLIP_MEAN, CLIP_STD


_LEAST = {"image_mean": 0.0, "image_std": 1e-6}


def _three(path: Path, told: Mapping[str, Any], name: str, other: Colours) -> Colours:
    found, least = told.get(name, other), _LEAST[name]
    if not (
        isinstance(found, list | tuple)
        and len(found) == len(other)
        and all(type(each) in (int, float) and least <= each <= 1 for each in found)
    ):
        raise UsageError(
            f"'{path}': {name} is {brief(found)}, expected three numbers from {least:g} to 1"
        )
    return tuple(found)
