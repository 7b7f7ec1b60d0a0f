from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from models.text.glove import glove_words
from models.text.treebank import treebank_words


@pytest.fixture(scope="module")
def golden(root: Path) -> Any:
    return json.loads((root / "tests/golden/treebank/words.json").read_text())


def test_words_are_those_of_nltk(golden: Any) -> None:
    assert len(golden["examples"]) > 60
    for text, words in golden["examples"]:
        assert treebank_words(text) == words


def test_words_of_every_query_of_the_field_are_those_of_nltk(
    golden: Any, root: Path, shared: Path
) -> None:
    make = runpy.run_path(str(root / "tests/golden/treebank/treebank_words_of_nltk.py"))
    sentences = make["sentences"](shared / "annotations")
    assert len(sentences) == golden["sentences"]
    assert make["digest"](treebank_words(each) for each in sentences) == golden["sha256"]


def test_the_full_stop_of_every_sentence_of_a_caption_is_a_sign() -> None:
    words = glove_words("The dog's red. Mr. Smith can't see it.\nHe says \"no\".")
    assert words == [
        *("the", "dog", "'s", "red", "."),
        *("mr.", "smith", "ca", "n't", "see", "it", "."),
        *("he", "says", "``", "no", "''", "."),
    ]


def test_blank_text_has_no_words() -> None:
    assert treebank_words(" \n") == []
