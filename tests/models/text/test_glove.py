from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError, UsageError
from models.text import TextEncoder, create
from models.word_tables import table_bytes

WORDS = ["'s", ",", ".", "a", "dog", "moves", "red"]
VECTORS = np.random.default_rng(1).normal(size=(len(WORDS), 5)).astype(np.float16)
OF = {word: VECTORS[i].astype(np.float32) for i, word in enumerate(WORDS)}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    blobs = {"words": "\n".join(WORDS).encode(), "unknown": b"zzyx\n``"}
    (tmp_path / "glove.safetensors").write_bytes(table_bytes("glove", VECTORS, blobs))
    return tmp_path / "glove.safetensors"


@pytest.fixture
def glove(table: Path) -> TextEncoder:
    return create("glove", table)


def mean(*words: str) -> np.ndarray:
    return np.mean([OF[each] for each in words], axis=0)


def test_a_query_has_the_vectors_of_its_words_and_signs_in_order(glove: TextEncoder) -> None:
    (states,) = glove.encode(["A red Dog's, a."])
    want = ["a", "red", "dog", "'s", ",", "a", "."]
    np.testing.assert_array_equal(states.tokens, [OF[each] for each in want])
    np.testing.assert_allclose(states.pooled, mean(*want), rtol=1e-5, atol=1e-6)
    assert states.unknown == ()


def test_a_caption_is_the_mean_of_its_words_without_signs_unless_they_are_kept(
    glove: TextEncoder,
) -> None:
    caption = "A red dog. A dog moves, a dog."
    words = ("a", "red", "dog", "a", "dog", "moves", "a", "dog")
    found = glove.caption_vector(caption)
    assert found.words == 8
    np.testing.assert_allclose(found.vector, mean(*words), rtol=1e-5, atol=1e-6)
    kept = glove.caption_vector(caption, keep_punct=True)
    assert kept.words == 11
    np.testing.assert_allclose(kept.vector, mean(*words, ".", ",", "."), rtol=1e-5, atol=1e-6)


def test_words_without_a_vector_are_left_out_and_named(glove: TextEncoder) -> None:
    (states,) = glove.encode(["a zzyx dog"])
    np.testing.assert_array_equal(states.tokens, [OF["a"], OF["dog"]])
    assert states.unknown == ("zzyx",)
    found = glove.caption_vector('A "zzyx" dog. Zzyx.')
    assert found.unknown == ("zzyx", "zzyx")  # signs that GloVe lacks are no words
    np.testing.assert_allclose(found.vector, mean("a", "dog"), rtol=1e-5, atol=1e-6)


def test_words_without_a_vector_may_keep_their_place_but_not_weigh_in_a_mean(table: Path) -> None:
    glove = create("glove", table, unknown="zero")
    (states,) = glove.encode(["a zzyx dog"])
    np.testing.assert_array_equal(states.tokens, [OF["a"], np.zeros(5), OF["dog"]])
    np.testing.assert_allclose(states.pooled, mean("a", "dog"), rtol=1e-5, atol=1e-6)
    assert glove.caption_vector("a zzyx dog").words == 2


@pytest.mark.parametrize("unknown", ["skip", "zero"])
def test_a_text_of_unknown_words_is_zeros_of_no_words(table: Path, unknown: str) -> None:
    glove = create("glove", table, unknown=unknown)
    (states,) = glove.encode(["zzyx"])
    assert states.tokens.shape == (1, 5)
    assert not states.tokens.any()
    assert not states.pooled.any()
    found = glove.caption_vector("Zzyx zzyx")
    assert (found.words, len(found.unknown)) == (0, 2)
    assert not found.vector.any()
    with pytest.raises(InputError, match="signs alone"):
        glove.caption_vector(", .")


def test_a_word_that_nobody_looked_up_is_no_unknown_word(table: Path) -> None:
    with pytest.raises(InputError, match=r"without looking up: cat, house; make it again") as found:
        create("glove", table).encode(["a red house, a cat, zzyx"])
    assert found.value.reason == "words-not-looked-up"
    lenient = create("glove", table, unasked="unknown")
    assert lenient.encode(["a house"])[0].unknown == ("house",)


def test_a_table_of_all_words_has_nothing_left_to_look_up(tmp_path: Path) -> None:
    blobs = {"words": "\n".join(WORDS).encode(), "unknown": b""}
    (tmp_path / "all.safetensors").write_bytes(table_bytes("glove", VECTORS, blobs, {"whole": "1"}))
    assert create("glove", tmp_path / "all.safetensors").encode(["a cat"])[0].unknown == ("cat",)


def test_options_are_checked_by_name_and_value(table: Path) -> None:
    with pytest.raises(UsageError, match=r"option 'unknown' is 'drop'; .*allowed: skip, zero"):
        create("glove", table, unknown="drop")
    with pytest.raises(UsageError, match="did you mean 'unknown'"):
        create("glove", table, unknwon="skip")
