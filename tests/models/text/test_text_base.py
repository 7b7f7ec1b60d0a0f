from __future__ import annotations

import numpy as np
import pytest

from models.text import create
from models.text.base import split_sentences


def test_sentences_end_at_full_stops_question_marks_and_lines_but_not_inside_names() -> None:
    text = "Mr. Smith runs. Is it 3.5 m away?\nYes!"
    assert split_sentences(text) == ["Mr. Smith runs.", "Is it 3.5 m away?", "Yes!"]


def test_a_caption_is_the_mean_over_its_words_with_the_same_weight_in_every_sentence() -> None:
    encoder = create("hash", preset="tiny")
    whole = encoder.caption_vector("A dog. One red circle moves.")
    one, other = (encoder.caption_vector(text) for text in ("A dog.", "One red circle moves."))
    assert whole.words == 6
    np.testing.assert_allclose(
        whole.vector, (2 * one.vector + 4 * other.vector) / 6, rtol=1e-5, atol=1e-6
    )
    assert np.array_equal(encoder.encode_caption("A dog."), one.vector)


def test_saying_a_caption_twice_changes_nothing() -> None:
    encoder = create("hash", preset="tiny")
    once, twice = (encoder.encode_caption("A red dog. " * n) for n in (1, 2))
    np.testing.assert_allclose(once, twice, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["hash", "clip"])
def test_markers_are_no_words(name: str) -> None:
    encoder = create(name, preset="tiny")
    (states,) = encoder.encode(["red dog"])
    lead, trail = encoder.edges
    assert len(states.tokens) - lead - trail == encoder.caption_vector("red dog").words == 2


def test_hash_vectors_are_words_own_and_differ_by_seed() -> None:
    encoder, other = create("hash", preset="tiny"), create("hash", preset="tiny", seed=1)
    states = encoder.encode(["The dog's red dog!"])[0]
    assert states.tokens.shape == (4, 64)
    again = encoder.encode(["a DOG barks"])[0]
    assert np.array_equal(states.tokens[3], again.tokens[1])
    assert not np.array_equal(states.tokens[1], states.tokens[3])  # dog's is another word
    assert not np.array_equal(states.tokens, other.encode(["The dog's red dog!"])[0].tokens)
    assert 0.8 < float(states.tokens.std()) < 1.2
