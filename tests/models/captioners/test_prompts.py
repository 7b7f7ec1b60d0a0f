from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import UsageError
from models.captioners import load_prompt
from models.captioners.prompts import prompt_ids


def test_the_prompt_of_tea_is_verbatim() -> None:
    # specs/tea_lmr_cqval_splits.md §2.3
    assert load_prompt("tea").instructions == (
        "This is one image frame sampled from a video. Please caption this frame in two or three "
        "sentences, to describe this frame with some details but without any analysis.",
    )


def test_the_instructions_of_lmr_are_those_of_its_table_verbatim() -> None:
    # specs/tea_lmr_cqval_splits.md §3.2, Table I of the paper
    assert load_prompt("lmr").instructions == (
        "Describe the following video concisely.",
        "Present a brief overview of the provided video.",
        "Provide a concise description of the given video.",
        "Convey a short narrative summarizing the provided video.",
        "Summarize the visual content of the following video.",
        "Deliver a compact portrayal of the presented video.",
        "Furnish a concise explanation of the given video.",
        "Supply a brief account of the provided video.",
        "Narrate the contents of the video with precision.",
        "Offer a succinct analysis of the given video.",
    )


def test_lmr_has_ten_different_instructions_and_videochat_eleven() -> None:
    # specs/tea_lmr_cqval_splits.md §3.2, specs/captioners.md §2.2 (j); two are in both lists
    lmr, own = load_prompt("lmr").instructions, load_prompt("videochat").instructions
    assert (len(set(lmr)), len(set(own)), len({*lmr, *own})) == (10, 11, 19)


@pytest.mark.parametrize("prompt_id", ["tee", "", "TEA", ".."])
def test_an_unknown_prompt_names_the_known_ones(prompt_id: str) -> None:
    with pytest.raises(UsageError, match=r"unknown prompt.*tea.*or a file of your own"):
        load_prompt(prompt_id)


def test_a_file_of_ones_own_is_called_by_its_words(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_bytes(b"\xef\xbb\xbf# why\r\n\r\n  What is happening?  \r\nWho?\r\n")
    other.write_text("What is happening?\nWho?\n# the end")
    assert load_prompt(str(one)).instructions == ("What is happening?", "Who?")
    assert load_prompt(str(one)) == load_prompt(str(other))
    # blake2b of '["What is happening?","Who?"]', 6 bytes: may never change between versions
    assert load_prompt(str(one)).id == "own:1a113e6c8482"
    assert load_prompt(str(one)).id not in prompt_ids()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        (b"# nothing\n\n", "holds no instruction: write one per line"),
        (b"Qu\xe9?", "not text in UTF-8"),
        (b"x" * (2**20 + 1), "larger than the 1,048,576 bytes"),
    ],
)
def test_a_file_that_cannot_be_a_prompt_says_why(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    file = tmp_path / "mine.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        load_prompt(str(file))
