"""What stands around a question, as the model was trained with it: texts, not code.

`vicuna_v1` and `llava_v1` differ in one word, and LLaVA's own programs use both: its training and
its evaluation scripts the first, `run_llava.py` and `model_vqa_loader.py` the second
(haotian-liu/LLaVA at c121f043, llava/conversation.py; specs/captioners.md §1.1).
"""

from __future__ import annotations

from data.errors import UsageError, nearest
from data.foreign import brief

__all__ = ["PICTURE", "QUESTION", "TEMPLATES", "chunks_of", "template_text"]

PICTURE, QUESTION = "<image>", "{question}"

_V1 = (
    "A chat between a curious {who} and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the {who}'s questions. USER: <image>\n"
    "{question} ASSISTANT:"
)

TEMPLATES = {
    "vicuna_v1": _V1.replace("{who}", "user"),
    "llava_v1": _V1.replace("{who}", "human"),
    # The chat template of llava-hf's checkpoints: no system prompt, unlike anything in training.
    "llava_hf": "USER: <image>\n{question} ASSISTANT:",
}
"""Templates by name. A beginning-of-text token goes before each."""


def template_text(template: str) -> str:
    """The text of a template.

    Args:
        template: a name of `TEMPLATES`, or a text of one's own that holds `<image>` and
            `{question}` once each, in this order.

    Raises:
        UsageError: neither.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if PICTURE not in template and QUESTION not in template:
        raise UsageError(
            f"unknown template {brief(template)}; {nearest(template, TEMPLATES)}; or a text of "
            f"your own with {PICTURE} and {QUESTION}"
        )
    once = template.count(PICTURE) == 1 and template.count(QUESTION) == 1
    if not once or template.index(PICTURE) > template.index(QUESTION):
        raise UsageError(
            f"a template holds {PICTURE} once, and after it {QUESTION} once; given: "
            f"{brief(template, 400)}"
        )
    return template


def chunks_of(text: str, question: str) -> tuple[str, str]:
    """What stands before and after the picture.

    Args:
        text: of a template.
        question: what is asked.

    Raises:
        UsageError: the question itself speaks of pictures in the model's own sign.
    """
    if PICTURE in question:
        raise UsageError(
            f"the prompt holds '{PICTURE}', the place of the picture, which the template sets; "
            f"take it out: {brief(question, 400)}"
        )
    before, after = text.split(PICTURE)
    return before, after.replace(QUESTION, question)
