from __future__ import annotations

import pytest

from data.errors import UsageError
from models.captioners import load_prompt


def test_the_prompt_of_tea_is_verbatim() -> None:
    # specs/tea_lmr_cqval_splits.md §2.3
    assert load_prompt("tea").instructions == (
        "This is one image frame sampled from a video. Please caption this frame in two or three "
        "sentences, to describe this frame with some details but without any analysis.",
    )


def test_lmr_has_ten_different_instructions() -> None:
    assert len(set(load_prompt("lmr").instructions)) == 10


def test_an_unknown_prompt_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown prompt 'tee'; did you mean 'tea'"):
        load_prompt("tee")


@pytest.mark.parametrize("prompt_id", ["../tea", "", "tea.txt"])
def test_a_prompt_id_is_no_path(prompt_id: str) -> None:
    with pytest.raises(UsageError, match="unknown prompt"):
        load_prompt(prompt_id)
