"""The words around what VideoChat sees, against video_chat/conversation.py (videochat_prompt)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videochat_files import sentencepiece_bytes

from models.captioners.videochat_text import (
    answer_of,
    clip_offsets_s,
    frame_indices,
    image_prompt,
    shown_s,
    stops,
    video_prompt,
    without_markers,
)
from models.tokens import read_tokens


def test_the_frames_of_a_clip_are_those_of_the_public_code(goldens: Any) -> None:
    for case in goldens.meta("videochat_prompt")["index_cases"]:
        assert frame_indices(case["num_frames"], case["num_segments"]) == case["indices"]


def test_prompts_are_those_of_the_public_code(goldens: Any) -> None:
    """From the length of a clip and its frame rate to the words, with times that are added up."""
    for case in goldens.meta("videochat_prompt")["prompts"]:
        clip_len_s = case["num_frames"] / case["fps"]
        offsets = clip_offsets_s(clip_len_s, case["fps"], case["num_segments"])
        assert list(video_prompt(case["instruction"], shown_s(offsets))) == case["segments"]


def test_a_picture_is_asked_about_as_in_the_public_code(goldens: Any) -> None:
    case = goldens.meta("videochat_prompt")["image_prompt"]
    assert list(image_prompt("Describe the image.")) == case["segments"]


@pytest.mark.parametrize(
    "fps", [10.0, 12.5, 23.976, 24.0, 25.0, 29.97002997002997, 30.0, 50, 60, 120]
)
@pytest.mark.parametrize("rounded_to_s", [1e-3, 1 / 600, 1 / 90_000])
def test_the_frame_that_is_meant_is_on_the_screen_when_it_is_looked_for(
    fps: float, rounded_to_s: float
) -> None:
    """Whatever the container rounds timestamps to, and for every clip of a minute."""
    count = round(60 * fps)
    begins = np.round(np.arange(count) / fps / rounded_to_s) * rounded_to_s
    offsets = np.array(clip_offsets_s(2.0, fps, 8))
    for clip in range(29):
        first = round(2 * clip * fps)
        asked = first / fps + offsets
        shown = np.searchsorted(begins, asked + 1e-6, side="right") - 1
        assert (shown - first).tolist() == frame_indices(round(2 * fps), 8)


def test_halves_of_a_tenth_are_rounded_as_there() -> None:
    """`round(f / fps, 1)` of 5 / 20 and 15 / 20 gives 0.2 and 0.8; the nudge must not change it."""
    asked = [5 / 20 + 1e-3, 15 / 20 + 1e-3, 7 / 20 + 1e-3]
    assert "sampled at 0.2, 0.8, 0.3 seconds" in video_prompt("", shown_s(asked))[1]
    assert [round(5 / 20, 1), round(15 / 20, 1), round(7 / 20, 1)] == [0.2, 0.8, 0.3]


def test_times_restart_with_each_clip_or_go_on_through_the_video() -> None:
    offsets = clip_offsets_s(2.0, 25.0, 4)
    assert np.round(shown_s(offsets), 9).tolist() == [0.24, 0.72, 1.20, 1.72]
    assert np.round(shown_s(offsets, 10.0), 9).tolist() == [10.24, 10.72, 11.20, 11.72]


def test_frames_that_end_at_a_timestamp_are_told_from_the_first_of_them() -> None:
    before = (-0.4, -0.2, 0.0)
    assert np.round(shown_s(before), 9).tolist() == [0.0, 0.2, 0.4]
    assert np.round(shown_s(before, 7.0), 9).tolist() == [6.6, 6.8, 7.0]
    assert shown_s(before, 0.0) == [0.0, 0.0, 0.0]  # the video begins there


def test_the_separator_is_looked_for_in_both_its_spellings(goldens: Any) -> None:
    """Ids of LLaMA's tokenizer for `###`: after the blank of a beginning, and on a new line."""
    llama = {"###": [835], "\n": [29871, 13], "\n###": [29871, 13, 2277, 29937]}
    wanted = goldens.meta("videochat_prompt")["stop_token_sequences"]
    assert [list(each) for each in stops(llama.__getitem__)] == wanted


@pytest.mark.parametrize(
    ("text", "answer", "ended"),
    [
        (" A man opens a door.###Human: And?", "A man opens a door.", True),
        ("###", "", True),
        ("Human: What? Assistant: A dog. ", "A dog.", False),
        ("A cat.\n### Assistant: no", "A cat.", True),
    ],
)
def test_an_answer_ends_at_the_separator_and_begins_after_the_role(
    text: str, answer: str, ended: bool
) -> None:
    assert answer_of(text) == (answer, ended)


def test_markers_at_the_beginning_of_an_answer_are_taken_away_once() -> None:
    """`<unk>` first, then `<s>`, as `Chat.answer` does."""
    assert without_markers((0, 1, 5, 0)) == (5, 0)
    assert without_markers((1, 0, 5)) == (0, 5)
    assert without_markers((0,)) == ()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes())
    return folder


def test_every_spelling_of_the_separator_is_the_separator(model_folder: Path) -> None:
    words = read_tokens(model_folder)
    assert {words.decode(each).strip() for each in stops(words.encode)} == {"###"}
