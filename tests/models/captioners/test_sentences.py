from __future__ import annotations

import pytest

from models.captioners.sentences import sentences, whole_sentences


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A man walks. He sits down and", "A man walks."),
        ("A man walks and sits down", "A man walks and sits down"),
        ("He runs 3.5 km. Then he", "He runs 3.5 km."),
        ("A woman waves. The man is Dr. Smith and he", "A woman waves."),
        ("A woman waves. The man is Dr.", "A woman waves."),
        ("The man is Dr. Smith and he", "The man is Dr. Smith and he"),
        ("A man, e.g. the host, sits. He (i.e. the", "A man, e.g. the host, sits."),
        ("A man sits. J. K. Rowling reads", "A man sits."),
        ("It is 5 p.m. and the man", "It is 5 p.m. and the man"),
        ("It is 5 p.m. The man", "It is 5 p.m."),
        ("Made in the U.S. He holds", "Made in the U.S."),
        ("1. A man walks. 2. A woman", "1. A man walks."),
        ("He says no. She", "He says no."),
        ("The bus is No. 5 and it", "The bus is No. 5 and it"),
        ("There are 5. One of them", "There are 5."),
        ('A man says "Stop!" He goes to', 'A man says "Stop!"'),
        ("He said: “Go.” Then he", "He said: “Go.”"),
        ("A man walks (slowly.) Then he", "A man walks (slowly.)"),
        ("**A man walks.** The woman", "**A man walks.**"),
        ("He stops... and then he", "He stops..."),
        ("a man walks. he sits. then", "a man walks. he sits."),
        ("他走了。然后她", "他走了。"),
        ("Is it red? Yes", "Is it red?"),
        ("", ""),
    ],
)
def test_what_the_limit_cut_off_is_left_out_up_to_a_real_end(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept


def test_a_text_is_cut_into_its_sentences() -> None:
    text = "Dr. Smith sits. He reads!\nThen he"
    assert sentences(text) == ["Dr. Smith sits.", "He reads!", "Then he"]
