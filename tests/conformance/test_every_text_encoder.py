"""What every text encoder must keep, on its tiny preset, or on a small table if it needs one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError, UsageError
from models.text import TEXT_ENCODERS, TextEncoder, create

every = pytest.mark.parametrize("name", TEXT_ENCODERS.names())
RANDOM = [name for name in TEXT_ENCODERS if TEXT_ENCODERS.get(name).random]
every_random = pytest.mark.parametrize("name", RANDOM)
every_table = pytest.mark.parametrize("name", sorted({*TEXT_ENCODERS} - {*RANDOM}))
Build = Callable[..., TextEncoder]
TEXTS = ["A red circle moves to the left.", "Dog", "She isn't there; he's at the door!"]


@pytest.fixture(scope="module")
def built(word_tables: dict[str, Path]) -> Build:
    return cache(lambda name, seed=0: create(name, word_tables.get(name), preset="tiny", seed=seed))


@every
def test_declared_dimensions_are_produced_without_padding(name: str, built: Build) -> None:
    encoder = built(name)
    states = encoder.encode(TEXTS)
    assert [each.tokens.dtype for each in states] == [np.float32] * 3
    assert all(each.tokens.shape[1] == encoder.dim for each in states)
    assert all(each.pooled.shape == (encoder.pooled_dim,) for each in states)
    assert len(states[1].tokens) == sum(encoder.edges) + 1
    assert not any(each.truncated for each in states)


@every
def test_a_text_gives_the_same_alone_and_among_others(name: str, built: Build) -> None:
    encoder = built(name)
    for text, together in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        (alone,) = encoder.encode([text])
        # float32 sums in another order, times the output scale
        np.testing.assert_allclose(alone.tokens, together.tokens, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(alone.pooled, together.pooled, rtol=1e-4, atol=1e-4)


@every
def test_encoding_twice_gives_the_same_bits(name: str, built: Build) -> None:
    one, other = (built(name).encode(TEXTS) for _ in range(2))
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(one, other, strict=True))


@every
def test_a_caption_of_any_length_is_one_vector(name: str, built: Build) -> None:
    encoder = built(name)
    vector = encoder.encode_caption("A red circle is on the left, moving right. " * 12)
    assert vector.shape == (encoder.dim,)
    assert vector.dtype == np.float32


@every
def test_no_texts_give_no_states_and_a_blank_one_is_an_input_error(name: str, built: Build) -> None:
    assert built(name).encode([]) == []
    with pytest.raises(InputError, match="without words") as caught:
        built(name).encode(["fine", " \n"])
    assert caught.value.reason == "no-text"


@every
def test_the_recipe_is_plain_json_and_says_whether_weights_are_random(
    name: str, built: Build
) -> None:
    params = json.loads(json.dumps(built(name).params()))
    assert params["text_encoder"] == name
    assert params["weights"]["kind"] == ("random" if name in RANDOM else "file")


@every_table
def test_an_encoder_that_needs_a_table_says_how_it_is_made(name: str) -> None:
    with pytest.raises(UsageError, match="write one with `pipeline weights"):
        create(name, preset="tiny")


@every_random
def test_another_seed_is_another_encoder(name: str, built: Build) -> None:
    one, other = built(name), built(name, seed=1)
    assert one.weights.sha256 != other.weights.sha256
    assert not np.allclose(one.encode(TEXTS)[0].tokens, other.encode(TEXTS)[0].tokens, atol=0.1)


def test_another_process_builds_the_same_encoders(built: Build) -> None:
    code = (
        "from models.text import create\n"
        f"for name in {RANDOM}: print(name, create(name, preset='tiny').weights.sha256)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here = [f"{name} {built(name).weights.sha256}" for name in RANDOM]
    assert done.stdout.split("\n")[:-1] == here


@every
def test_a_wrong_checkpoint_and_wrong_options_are_sentences(name: str) -> None:
    with pytest.raises(UsageError, match=r"is no checkpoint of|has no weights"):
        create(name, {}, preset="tiny")
    with pytest.raises(UsageError, match="unknown option 'sede'; did you mean 'seed'"):
        create(name, sede=1)
    with pytest.raises(UsageError, match="unknown preset 'tny'"):
        create(name, preset="tny")


def test_an_unknown_encoder_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'clip'"):
        create("clp")
