"""Ranking of rules by the published sizes, and presets."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from cqval_files import annotation_file, conllu_file, good, labelled, queries_of, refused, val_like

from data.errors import UsageError
from training.cqval.build import Queries, build, sizes
from training.cqval.clauses import label_counts
from training.cqval.fit import Fit, Rule, fit, rank, read_preset, write_preset
from training.cqval.parses import Labelled
from training.cqval.published import PUBLISHED_SIZES
from training.cqval.words import WORD_RULES


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Queries:
    path = tmp_path_factory.mktemp("cqval") / "val.jsonl"
    return queries_of(annotation_file(path, dict(enumerate(val_like()))))


def planted() -> list[list[str]]:
    """Labels that make exactly the published sizes if acl and advcl are counted, and only they.

    How many queries of each length have one clause and two follows from the sizes: 388 - 353 = 35
    of 8 words have one, 50 - 49 = 1 of them has two, and so on.
    """
    one = dict(zip(range(8, 17), -np.diff([*PUBLISHED_SIZES[:9], 0]), strict=True))
    two = {8: 1, 9: 1, 10: 39, 11: 9}
    seen: dict[int, int] = defaultdict(int)
    rows = []
    for query in val_like():
        length, row = len(query.split()), []
        place = seen[length]
        seen[length] += 1
        if place < one.get(length, 0):
            row.append(["acl", "advcl"][place % 2])
            if place < two.get(length, 0):
                row.append("acl")
        row += ["xcomp"] * (place % 7 == 0) + ["relcl"] * (place % 11 == 0)
        row += ["parataxis"] * (length < 8 and place == 1)
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def found(val: Queries) -> Fit:
    return fit(val, labelled(val.texts, planted()))


def test_the_rule_that_made_the_sizes_is_found(found: Fit) -> None:
    assert found.candidates == ("acl", "advcl", "parataxis", "relcl", "xcomp")
    assert found.best.labels == ("acl", "advcl")
    assert found.best.words == "split"
    assert found.best.sizes == PUBLISHED_SIZES
    assert (found.best.exact, found.best.absolute, found.best.relative) == (12, 0, 0.0)
    assert len(found.rules) == (2**5 - 1) * 4


def test_rules_that_cannot_be_told_apart_are_told(found: Fit) -> None:
    """parataxis occurs in short queries only; blank-separated words are all alphabetic."""
    assert len(found.ties) == 2 * 4
    remark = next(found.remarks())
    assert remark.startswith("8 rules make the sizes of the best one")
    assert "in all of them: acl, advcl; in some: parataxis" in remark


def test_the_vectorised_sizes_are_those_of_building_each_rule(val: Queries) -> None:
    parses = labelled(val.texts, planted())
    counts = label_counts(parses.sentences, ["acl", "relcl", "xcomp"])
    words = {"split": np.asarray([len(each.split()) for each in val.texts])}
    rules = {each.labels: each.sizes for each in rank(counts, ["acl", "relcl", "xcomp"], words)}
    assert len(rules) == 7
    for size in (1, 2, 3):
        for labels in combinations(["acl", "relcl", "xcomp"], size):
            assert rules[labels] == build(val, parses, labels).sizes


def test_errors_are_measured_against_the_published_sizes() -> None:
    rule = Rule(("acl",), "split", (388 + 39, *PUBLISHED_SIZES[1:11], 48 - 12))
    assert rule.exact == 10
    assert rule.absolute == 51
    assert rule.relative == pytest.approx((39 / 388 + 12 / 48) / 12)
    assert rule.residuals == (39, *[0] * 10, -12)


def test_counts_without_labels_cannot_be_fitted_and_it_is_said_why(tmp_path: Path) -> None:
    rows = annotation_file(tmp_path / "val.jsonl", dict(enumerate(val_like())))
    told = refused("fit", rows, "--parser", "heuristic")
    assert "no labels, so there are no rules to compare: fit is impossible" in told


def test_other_queries_than_val_cannot_be_fitted(tmp_path: Path) -> None:
    rows = annotation_file(tmp_path / "rows.jsonl")
    told = refused(
        "fit", rows, "--parser", "conllu", "--parses", conllu_file(tmp_path / "p.conllu")
    )
    assert "does not hold the 1,550 queries of QVHighlights val" in told


def test_too_many_or_no_candidates_are_refused(val: Queries) -> None:
    names = [f"l{i}" for i in range(17)]
    parses = labelled(val.texts, [[names[i % 17]] for i in range(1550)])
    with pytest.raises(UsageError, match=r"17 of the labels .* all sets of 1 to 16 labels"):
        fit(val, parses, names)
    with pytest.raises(UsageError, match="0 of the labels"):
        fit(val, parses, ["acl"])


def test_a_fit_that_fits_nothing_says_so(val: Queries) -> None:
    found = fit(val, labelled(val.texts, [["acl"]] * 1550))
    assert found.plausible == ()
    told = " ".join(found.remarks())
    off = f"{found.best.relative:.1%}"
    assert f"no rule fits: the best is off by {off} on average, and parsers differ by 4%" in told
    assert "makes 0 of 12 sizes" in told
    assert "rules are off by at most" not in told


def test_labels_that_could_not_be_tried_are_told(found: Fit) -> None:
    absent = ("ccomp", "csubj", "csubjpass", "conj-verb", "pcomp")
    assert found.absent == absent
    assert f"not in this parse, so not tried: {', '.join(absent)}" in found.remarks()


def test_coordinated_verbs_are_not_counted_where_no_word_is_known_to_be_a_verb(
    val: Queries,
) -> None:
    """Before, `--clause-labels acl,conj-verb` counted acl alone and said nothing."""
    rows = [*planted()]
    rows[-1] = [*rows[-1], "conj"]
    parses = labelled(val.texts, rows)
    assert "conj-verb" in fit(val, parses).absent
    with pytest.raises(UsageError, match="1 tokens with the label 'conj' have no part of speech"):
        build(val, parses, ["acl", "conj-verb"])
    with pytest.raises(UsageError, match="have no part of speech"):
        fit(val, parses, ["acl", "conj-verb"])


def test_a_preset_is_built_with_and_says_what_it_was_fitted_with(
    tmp_path: Path, val: Queries, found: Fit
) -> None:
    preset = tmp_path / "preset.json"
    write_preset(preset, found, labelled(val.texts, planted()), val)
    read = read_preset(preset)
    assert (read.labels, read.words) == (("acl", "advcl"), "split")
    assert json.loads(preset.read_text())["fitted"]["rules_with_the_same_sizes"] == 8

    rows, out = annotation_file(tmp_path / "rows.jsonl"), tmp_path / "s.json"
    parses = ["--parser", "conllu", "--parses", conllu_file(tmp_path / "p.conllu")]
    told = good("build", rows, *parses, "--preset", preset, "--out", out)
    assert "fitted with another parse than this one" in told
    assert json.loads(out.read_text())["clause_labels"] == ["acl", "advcl"]
    told = refused("build", rows, *parses, "--preset", preset, "--words", "split", "--out", out)
    assert "leave out --clause-labels and --words" in told


def test_a_file_that_is_no_preset_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    path.write_text('{"clause_labels": ["acl"]}')
    with pytest.raises(UsageError, match="no preset of this version"):
        read_preset(path)


def test_fit_shows_the_ranking_and_writes_the_first_rule(tmp_path: Path) -> None:
    texts = val_like()
    rows = annotation_file(tmp_path / "val.jsonl", dict(enumerate(texts)))
    path = tmp_path / "val.conllu"
    with path.open("w") as file:
        for qid, (query, labels) in enumerate(zip(texts, planted(), strict=True)):
            file.write(f"# qid = {qid}\n")
            for place, word in enumerate(query.split(), start=1):
                label = labels[place - 1] if place <= len(labels) else "dep"
                head, label = (0, "root") if place == len(query.split()) else (place + 1, label)
                file.write(f"{place}\t{word}\t_\t_\t_\t_\t{head}\t{label}\t_\t_\n")
            file.write("\n")
    preset = tmp_path / "preset.json"
    told = good("fit", rows, "--parser", "conllu", "--parses", path, "--out", preset)
    assert "12/12" in told
    assert "124 rules against the 12 sizes" in told
    assert read_preset(preset).labels == ("acl", "advcl")
    parse = ["--parser", "conllu", "--parses", path]
    told = good("build", rows, *parse, "--preset", preset, "--out", tmp_path / "s.json")
    assert "another parse" not in told
    assert "+0" in told


def test_word_rules_that_differ_are_ranked_apart(val: Queries) -> None:
    parses = labelled(val.texts, planted())
    assert isinstance(parses, Labelled)
    words = {name: WORD_RULES.get(name)(val.texts, parses.sentences) for name in WORD_RULES}
    longer = {"split": words["split"], "tokens": words["tokens"] + 1}  # type: ignore[operator]
    counts = label_counts(parses.sentences, ["acl", "advcl"])
    best = rank(counts, ["acl", "advcl"], longer)[0]  # type: ignore[arg-type]
    assert (best.labels, best.words) == (("acl", "advcl"), "split")
    assert best.sizes == sizes(counts.sum(axis=1), longer["split"])  # type: ignore[arg-type]
