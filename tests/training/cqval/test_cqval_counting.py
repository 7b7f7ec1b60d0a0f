"""What is a clause and a word, and what was published."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UsageError
from training.cqval.build import sizes
from training.cqval.clauses import CLAUSE_LABELS, Token, clearnlp, known_labels, label_counts
from training.cqval.published import (
    _VAL_LONG,
    PUBLISHED_SIZES,
    TABLE_IV,
    THRESHOLDS,
    is_published_split,
)
from training.cqval.words import WORD_RULES


def test_every_published_recall_is_a_whole_number_of_hits_of_its_published_size() -> None:
    for values in TABLE_IV["R1@0.7"].values():
        for size, percent in zip(PUBLISHED_SIZES, values, strict=True):
            assert any(abs(100 * hits / size - percent) <= 0.005 + 1e-9 for hits in range(size + 1))


def test_the_published_sizes_are_the_only_ones_that_make_the_published_recalls() -> None:
    """Whole hits, no more queries of a length than there are, and the ends 48 and 388."""
    rows = list(zip(*TABLE_IV["R1@0.7"].values(), strict=True))
    columns = [
        [(size, hits) for size in range(48, 389) if all(hits := possible_hits(size, row))]
        for row in rows
    ]
    one = chains(columns[:9])
    found = [
        (*(size for size, _ in first), *(size for size, _ in second))
        for first in one
        for second in chains(columns[9:])
        if all(b <= a for (a, _), (b, _) in zip(first, second, strict=False))
        and grows_no_faster(second, first)
    ]
    assert [each for each in found if (min(each), max(each)) == (48, 388)] == [PUBLISHED_SIZES]


Column = tuple[int, list[list[int]]]


def possible_hits(size: int, row: tuple[float, ...]) -> list[list[int]]:
    """For each printed percentage, the hits of `size` queries that are written so."""
    return [
        [hits for hits in range(size + 1) if abs(round(100 * hits / size, 2) - percent) < 1e-9]
        for percent in row
    ]


def chains(columns: list[list[Column]]) -> list[list[Column]]:
    """Sizes for 8, 9, ... words that fit together."""
    found = [[each] for each in columns[0]]
    for words, column in enumerate(columns[1:], start=8):
        found = [[*each, more] for each in found for more in column if fits(each[-1], more, words)]
    return found


def fits(longer: Column, shorter: Column, words: int) -> bool:
    """Whether queries of exactly `words` words can be what is between two sizes."""
    more = longer[0] - shorter[0]
    return 0 <= more <= _VAL_LONG[words] - _VAL_LONG[words + 1] and all(
        any(0 <= a - b <= more for a in many for b in few)
        for many, few in zip(longer[1], shorter[1], strict=True)
    )


def grows_no_faster(inner: list[Column], outer: list[Column]) -> bool:
    """Queries of one length with two clauses are among those with one."""
    return all(
        inner[i][0] - inner[i + 1][0] <= outer[i][0] - outer[i + 1][0]
        for i in range(len(inner) - 1)
    )


def test_the_published_averages_are_the_means_of_the_published_columns() -> None:
    # LMR, Table IV, last column
    averages = {
        ("R1@0.7", "QD-DETR"): 45.43,
        ("R1@0.7", "LMR"): 53.42,
        ("mAP@0.7", "QD-DETR"): 42.26,
        ("mAP@0.7", "LMR"): 49.78,
    }
    for (metric, model), average in averages.items():
        assert float(np.mean(TABLE_IV[metric][model])) == pytest.approx(average, abs=0.006)


def test_the_thresholds_are_the_columns_of_the_paper() -> None:
    assert " ".join(map(str, THRESHOLDS)) == (
        "(1,8) (1,9) (1,10) (1,11) (1,12) (1,13) (1,14) (1,15) (1,16) (2,8) (2,9) (2,10)"
    )


def test_other_queries_than_those_of_val_are_told_by_their_lengths() -> None:
    assert not is_published_split(["a query"] * 1550)
    assert not is_published_split([])


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("acl:relcl", "relcl"),
        ("csubj:pass", "csubjpass"),
        ("root", "ROOT"),
        ("obj", "dobj"),
        ("advcl:relcl", "advcl"),
        ("advcl", "advcl"),
        ("nsubj", "nsubj"),
        ("ROOT", "ROOT"),
    ],
)
def test_labels_of_universal_dependencies_get_their_clearnlp_names(label: str, name: str) -> None:
    assert clearnlp(label) == name


def test_a_misspelt_clause_label_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="unknown clause label 'advlc'; did you mean 'advcl'"):
        known_labels(["acl", "advlc"])
    with pytest.raises(UsageError, match="needs labels"):
        known_labels([" "])


def test_labels_may_be_given_as_either_scheme_names_them() -> None:
    assert known_labels(["acl:relcl", "acl", "relcl"]) == ("acl", "relcl")


def test_the_main_clause_is_no_clause_and_a_coordinated_verb_only_if_asked() -> None:
    tokens = [Token("cuts", "ROOT", "VERB"), Token("eats", "conj", "VERB"), Token("it", "conj")]
    assert "ROOT" not in CLAUSE_LABELS
    assert label_counts([tokens], CLAUSE_LABELS).sum() == 0
    assert label_counts([tokens], ["conj", "conj-verb", "ROOT"]).tolist() == [[2, 1, 1]]
    # "is" in "She cooks and is happy" has the part of speech AUX in Universal Dependencies
    assert label_counts([[Token("is", "conj", "AUX")]], ["conj-verb"]).tolist() == [[1]]


@pytest.mark.parametrize(
    ("rule", "words"), [("split", 6), ("alphabetic", 4), ("no-punctuation", 6), ("tokens", 8)]
)
def test_each_word_rule_counts_what_it_says(rule: str, words: int) -> None:
    texts = ["She", "'s", "at", "home", "by", "8", "...", "-"]
    tokens = [Token(each, "dep") for each in texts]
    found = WORD_RULES.get(rule)(["She's at home by 8... -"], [tokens])
    assert found is not None
    assert found.tolist() == [words]


def test_rules_that_count_tokens_have_no_answer_without_a_parse() -> None:
    assert WORD_RULES.get("tokens")(["a query"], None) is None


counts = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 20)), min_size=1, max_size=60)


@given(counts)
def test_sizes_do_not_grow_with_more_words_or_clauses(rows: list[tuple[int, int]]) -> None:
    clauses, words = np.asarray(rows).T
    found = dict(zip(THRESHOLDS, sizes(clauses, words), strict=True))
    for least, size in found.items():
        stricter = [
            n for t, n in found.items() if t.clauses >= least.clauses and t.words >= least.words
        ]
        assert all(n <= size for n in stricter)


LABELS = [*CLAUSE_LABELS, "det", "ROOT"]


@given(
    st.lists(st.lists(st.sampled_from(LABELS), max_size=8), min_size=1, max_size=20),
    st.sets(st.sampled_from(LABELS), min_size=1),
    st.sampled_from(LABELS),
)
def test_one_label_more_never_takes_a_clause_away(
    sentences: list[list[str]], labels: set[str], more: str
) -> None:
    tokens = [[Token("x", label) for label in each] for each in sentences]
    few = label_counts(tokens, sorted(labels)).sum(axis=1)
    many = label_counts(tokens, sorted(labels | {more})).sum(axis=1)
    assert (many >= few).all()
    assert few.tolist() == [sum(label in labels for label in each) for each in sentences]
