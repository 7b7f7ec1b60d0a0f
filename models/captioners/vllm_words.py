"""How captioner `vllm` asks: token ids with a place for each picture, and the pictures it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UsageError
from data.foreign import brief, json_object, read_limited
from models.captioners.base import CaptionRequest, Sight
from models.captioners.templates import chunks_of, template_text
from models.captioners.thoughts import thinks
from models.captioners.vlm import Talk
from models.captioners.vlm_files import load_config, load_processor
from models.tokens import read_tokens

__all__ = [
    "LLAVA_TEMPLATE",
    "ChatWords",
    "LlavaWords",
    "Words",
    "config_of",
    "is_llava",
    "words_of",
]

LLAVA_TEMPLATE = "vicuna_v1"
_MOST_CONFIG_BYTES = 1 << 20


class Words(ABC):
    """How a request becomes token ids, and what the model wants to see.

    Attributes:
        sight: which pixels.
    """

    sight: Sight

    @abstractmethod
    def ids(self, request: CaptionRequest) -> tuple[tuple[int, ...], bool]:
        """Token ids, one for each picture, and whether the model begins with thinking."""


class LlavaWords(Words):
    """LLaVA 1.5: its template, the text on each side of the picture tokenised alone.

    Args:
        folder: of llava-hf's layout.
        config: its config.json.
        template: a name of `templates.TEMPLATES`, or a text.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], template: str) -> None:
        from models.captioners.colours import CLIP_MEAN
        from models.captioners.llava_layouts import MOST_PIXELS

        side = config["vision_config"].get("image_size", 336)
        if type(side) is not int or not 1 <= side <= MOST_PIXELS:
            raise UsageError(
                f"'{folder / 'config.json'}': image_size is {brief(side)}, expected 1 to "
                f"{MOST_PIXELS:,} pixels"
            )
        red, green, blue = (int(each * 255) for each in CLIP_MEAN)
        self.sight = Sight(1, side, "padded", (red, green, blue))
        self._template = template_text(template)
        self._tokens = read_tokens(folder)
        self._picture = _picture_id(folder, config)

    def ids(self, request: CaptionRequest) -> tuple[tuple[int, ...], bool]:
        """See `Words`."""
        before, after = (
            self._tokens.encode(each) for each in chunks_of(self._template, request.prompt)
        )
        return (self._tokens.bos, *before, self._picture, *after), False


class ChatWords(Words):
    """Any other model: its chat template, or a text of one's own.

    Args:
        folder: of the model.
        talk: how a request becomes a text.
        frames: pictures of a request.
        side: longest side of a picture, in pixels.
    """

    def __init__(self, folder: Path, talk: Talk, frames: int, side: int) -> None:
        self.sight = Sight(frames, side, "within")
        self._talk = talk
        self._processor = load_processor(folder, load_config(folder))
        talk.check(self._processor, folder, frames)

    def ids(self, request: CaptionRequest) -> tuple[tuple[int, ...], bool]:
        """See `Words`; a template that writes the first token itself does not get it twice."""
        tokenizer = self._processor.tokenizer
        text = self._talk.text(self._processor, request)
        special = not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        return tuple(ids), thinks(text)


def words_of(folder: Path, template: str | None, talk: Talk, frames: int, side: int) -> Words:
    """The words of the model in a folder.

    Raises:
        UsageError: a layout that vLLM does not read; options that the model has no use for.
    """
    config = config_of(folder)
    if "mm_vision_tower" in config or "mm_projector_type" in config:
        raise UsageError(
            f"'{folder}' is LLaVA in liuhaotian's layout, which vLLM does not read; use captioner "
            "llava, or give the same model in llava-hf's layout"
        )
    if not is_llava(config):
        return ChatWords(
            folder, Talk(talk.system, template, talk.template_options, talk.say_times), frames, side
        )
    if talk != Talk() or frames != 1:
        raise UsageError(
            "captioner vllm: LLaVA 1.5 sees one frame and has templates of its own; leave frames, "
            "system, template_options and say_times out"
        )
    return LlavaWords(folder, config, template or LLAVA_TEMPLATE)


def is_llava(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of LLaVA 1.5 in llava-hf's layout."""
    return config.get("model_type") == "llava" and isinstance(config.get("vision_config"), dict)


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a folder."""
    file = folder / "config.json"
    return json_object(read_limited(file, _MOST_CONFIG_BYTES, "the configuration"), str(file))


def _picture_id(folder: Path, config: Mapping[str, Any]) -> int:
    for name in ("image_token_index", "image_token_id"):
        if isinstance(config.get(name), int):
            return int(config[name])
    raise UsageError(f"'{folder / 'config.json'}' does not say which token stands for a picture")
