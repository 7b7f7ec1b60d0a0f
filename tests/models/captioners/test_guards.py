from __future__ import annotations

import pytest

from models.captioners.guards import FLAGS, caption_flags

GOOD = "A man in a blue shirt opens the door and walks into the kitchen."


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (GOOD, ()),
        ("", ("empty",)),
        (" \n\n ", ("empty",)),
        ("...!\n-", ("punctuation",)),
        ("A dog.", ("short",)),
        (" ".join(f"{i * i * i}" for i in range(1000, 1121)), ("long",)),
        ("the man and the " * 5, ("loop",)),
        ("a b c d " * 3 + GOOD, ()),
        ("A dog runs. " + "red " * 45, ("loop",)),
        ("ASSISTANT: a dog runs away", ("template",)),
        ("A dog runs away.</s>", ("template",)),
        ("I'm sorry, but as an AI I cannot see it.", ("refusal",)),
    ],
)
def test_what_is_wrong_with_a_caption_is_flagged(text: str, flags: tuple[str, ...]) -> None:
    assert caption_flags(text) == flags


def test_a_caption_cut_by_the_limit_and_one_that_repeats_the_prompt_are_flagged() -> None:
    assert caption_flags(GOOD, finish_reason="length") == ("truncated",)
    assert caption_flags(f"Describe it. {GOOD}", prompt="describe it.") == ("echo",)


def test_flags_keep_one_order() -> None:
    flags = caption_flags("USER: no", finish_reason="length")
    assert list(flags) == sorted(flags, key=FLAGS.index) == ["short", "template", "truncated"]
