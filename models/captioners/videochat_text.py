"""What VideoChat reads and writes: which frames of a clip, the words around them, the answer.

As `video_chat/conversation.py` of OpenGVLab/Ask-Anything (commit 4dd8210b) has it: `get_index`,
`get_prompt`, `upload_video`, `upload_img`, `ask`, `answer`, with the roles and separator of its
demo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = [
    "LAYOUT_VERSION",
    "answer_of",
    "clip_offsets_s",
    "frame_indices",
    "image_prompt",
    "prompt_tokens_estimate",
    "shown_s",
    "stops",
    "video_prompt",
    "without_markers",
]

LAYOUT_VERSION = 1
"""In recipes: other words around an instruction are other captions."""

_SEP = "###"

_INTO_FRAME_S = 1e-3
"""Frames of a clip are asked for this long after they begin: containers round timestamps (Matroska
to 1 ms), and the frame before must not be taken for it. Not in the seconds that the model reads."""


def frame_indices(frames: int, segments: int) -> list[int]:
    """Which of the `frames` frames of a clip are seen (`get_index`); some twice if they are few."""
    size = (frames - 1) / segments
    start = int(size / 2)
    # Python rounds halves to even, as numpy does there.
    return [start + round(size * each) for each in range(segments)]


def clip_offsets_s(clip_len_s: float, fps: float, segments: int) -> list[float]:
    """When the frames of a clip are to be looked for, in seconds from its start."""
    frames = max(1, round(clip_len_s * fps))
    return [index / fps + _INTO_FRAME_S for index in frame_indices(frames, segments)]


def shown_s(times_s: Sequence[float], start_s: float | None = None) -> list[float]:
    """The seconds that the model reads.

    Args:
        times_s: of `clip_offsets_s`, or of the frames of a timestamp, the last of which is at 0.
        start_s: what these are relative to, in seconds of the video; None: the model is told
            seconds from the start of what it sees.
    """
    timestamp = times_s[0] < 0
    lag = 0.0 if timestamp else _INTO_FRAME_S
    if start_s is None:
        start_s = -times_s[0] if timestamp else 0.0
    return [max(start_s + each - lag, 0.0) for each in times_s]


def video_prompt(instruction: str, seconds: Sequence[float]) -> tuple[str, str]:
    """The words before and after the soft tokens of a clip.

    Args:
        instruction: what is asked.
        seconds: of each frame.
    """
    # Nine digits take away what adding and subtracting left: halves round as they do there.
    told = ", ".join(str(round(round(each, 9), 1)) for each in seconds)
    message = f"The video contains {len(seconds)} frames sampled at {told} seconds."
    return _around("Video", f" {message}", instruction)


def image_prompt(instruction: str) -> tuple[str, str]:
    """The words before and after the soft tokens of one picture."""
    return _around("Image", "", instruction)


def _around(tag: str, message: str, instruction: str) -> tuple[str, str]:
    after = f"</{tag}>{message}\n{_SEP}Human: {instruction}\n{_SEP}Assistant:"
    return f"{_SEP}Human: <{tag}>", after


def stops(encode: Callable[[str], Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The token sequences that spell the separator: after a space, and at the start of a line.

    With LLaMA's tokenizer (835,) and (2277, 29937), the two that the public code looks for.

    Args:
        encode: ids of a text, without the token of the beginning.
    """
    line, both = tuple(encode("\n")), tuple(encode(f"\n{_SEP}"))
    at_start = both[len(line) :] if both[: len(line)] == line else ()
    return tuple(dict.fromkeys(each for each in (tuple(encode(_SEP)), at_start) if each))


def answer_of(text: str) -> tuple[str, bool]:
    """What the assistant said, and whether it came to the separator."""
    said, separator, _ = text.partition(_SEP)
    return said.rsplit("Assistant:", 1)[-1].strip(), bool(separator)


def without_markers(ids: Sequence[int]) -> tuple[int, ...]:
    """Without `<unk>` (0), then `<s>` (1), that an answer may begin with."""
    kept = tuple(ids)
    for marker in (0, 1):
        kept = kept[1:] if kept[:1] == (marker,) else kept
    return kept


def prompt_tokens_estimate(soft_tokens: int, frames: int) -> int:
    """About how many tokens go in, for a plan, which has no tokenizer: five for the time of each
    frame, and some forty other ones around an instruction of seven words.
    """
    return soft_tokens + 40 + 5 * frames
