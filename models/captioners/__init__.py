"""Captioners: frames and a prompt in, words out.

CAPTIONERS      all of them, by name
create          one of them, by name, checkpoint and options
load_prompt     what a captioner is asked, by id
caption_flags   what is wrong with a caption
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from models.captioners.base import CAPTIONERS, Captioner, CaptionRequest, CaptionResult, Sight
from models.captioners.guards import caption_flags
from models.captioners.prompts import Prompt, load_prompt
from models.options import check_options

if TYPE_CHECKING:
    from models.weights import Checkpoint

__all__ = [
    "CAPTIONERS",
    "CaptionRequest",
    "CaptionResult",
    "Captioner",
    "Prompt",
    "Sight",
    "caption_flags",
    "create",
    "load_prompt",
]


# A captioner is imported when it is asked for: a plan must not pay for torch (most import it).
_LOADS: dict[str, Callable[[], object]] = {
    "blip2": lambda: import_module("models.captioners.blip2"),
    "llava": lambda: import_module("models.captioners.llava"),
    "openai": lambda: import_module("models.captioners.openai_server"),
    "pixel": lambda: import_module("models.captioners.pixel"),
    "precomputed": lambda: import_module("models.captioners.precomputed"),
    "videochat": lambda: import_module("models.captioners.videochat"),
    "vllm": lambda: import_module("models.captioners.vllm_captioner"),
    "vlm": lambda: import_module("models.captioners.vlm"),
}
for _name, _load in _LOADS.items():
    CAPTIONERS.offer(_name, _load)


def create(name: str, checkpoint: Checkpoint | None = None, **options: Any) -> Captioner:
    """A captioner.

    Args:
        name: of the captioner.
        checkpoint: its weights, if it has any.
        options: of its constructor; `seed` and `device` are taken by all.

    Raises:
        UsageError: unknown name or option, or a checkpoint for a captioner without weights.
    """
    kind: Any = CAPTIONERS.get(name)
    check_options(f"captioner {name}", kind, options)
    captioner: Captioner = kind(checkpoint, **options)
    return captioner
