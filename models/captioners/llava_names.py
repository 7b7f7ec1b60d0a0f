"""Names of tensors in files of LLaVA and of CLIP, as `LlavaForConditionalGeneration` has them."""

from __future__ import annotations

import re

__all__ = ["hf_name", "own_name", "vision_name"]

_DROPPED = re.compile(r"\.(position_ids|rotary_emb\.inv_freq)$")
"""Tables that old transformers saved and every version computes."""

_HF_NAMES = (
    # Until 4.51, what `save_pretrained` still writes; since then.
    (re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)"), r"model.vision_tower.\1"),
    (re.compile(r"^(?:model\.)?multi_modal_projector\.(.+)"), r"model.multi_modal_projector.\1"),
    (re.compile(r"^(?:language_model\.)?lm_head\.(.+)"), r"lm_head.\1"),
    (
        re.compile(r"^(?:language_model\.model|model\.language_model)\.(.+)"),
        r"model.language_model.\1",
    ),
)

_OWN_NAMES = (
    (
        re.compile(r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.+)"),
        r"model.vision_tower.\1",
    ),
    (re.compile(r"^model\.mm_projector\.0\.(.+)"), r"model.multi_modal_projector.linear_1.\1"),
    (re.compile(r"^model\.mm_projector\.2\.(.+)"), r"model.multi_modal_projector.linear_2.\1"),
    (re.compile(r"^model\.((?:embed_tokens|layers|norm)\..+)"), r"model.language_model.\1"),
)


def _renamed(rules: tuple[tuple[re.Pattern[str], str], ...], name: str) -> str | None:
    if _DROPPED.search(name):
        return None
    for pattern, new in rules:
        if pattern.match(name):
            return pattern.sub(new, name)
    return name  # the strict check names it


def hf_name(name: str) -> str | None:
    """A tensor of llava-hf's files, of any version of transformers."""
    return _renamed(_HF_NAMES, name)


def own_name(name: str) -> str | None:
    """A tensor of liuhaotian's files."""
    return _renamed(_OWN_NAMES, name)


def vision_name(name: str) -> str | None:
    """A tensor of the folder of a CLIP, whole or only its vision tower."""
    if name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale")):
        return None
    return _renamed(((re.compile(r"^(?:vision_model\.)?(.+)"), r"model.vision_tower.\1"),), name)
