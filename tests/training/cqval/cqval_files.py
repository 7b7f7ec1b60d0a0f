"""Small annotations and parses for the tests of C-QVal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from training.cqval.build import Queries
from training.cqval.clauses import Token
from training.cqval.commands import cqval_commands
from training.cqval.parses import Labelled

QUERIES = {
    1: "A man wearing a red hat cooks because she is hungry now.",  # 12 words: acl, advcl
    2: "A girl who sings walks down the long street alone today.",  # 11 words: relcl
    3: "The dog is sleeping.",
}


def annotation_file(path: Path, queries: Mapping[Any, str] = QUERIES) -> Path:
    """QVHighlights rows: one moment of 10 s each."""
    rows = [
        {
            "qid": qid,
            "query": query,
            "duration": 150,
            "vid": f"v{place}",
            "relevant_windows": [[10, 20]],
        }
        for place, (qid, query) in enumerate(queries.items())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentence(qid: object, rows: Sequence[str], *comments: str) -> str:
    """One CoNLL-U sentence of "form head label [UPOS]" rows."""
    lines = [f"# qid = {qid}", *comments]
    for number, row in enumerate(rows, start=1):
        form, head, label, *pos = row.split()
        lines.append(
            "\t".join([str(number), form, "_", *(pos or ["_"]), *"__", head, label, "_", "_"])
        )
    return "\n".join(lines) + "\n\n"


# Heads and labels by hand, after https://universaldependencies.org/en/dep/
CONLLU = {
    1: "A 2 det|man 7 nsubj|wearing 2 acl|a 6 det|red 6 amod|hat 3 obj|cooks 0 root|because 11 mark"
    "|she 11 nsubj|is 11 cop|hungry 7 advcl|now 11 advmod|. 7 punct",
    2: "A 2 det|girl 5 nsubj|who 4 nsubj|sings 2 acl:relcl|walks 0 root|down 9 case|the 9 det"
    "|long 9 amod|street 5 obl|alone 5 advmod|today 5 obl:unmarked|. 5 punct",
    3: "The 2 det|dog 4 nsubj|is 4 aux|sleeping 0 root|. 4 punct",
}


def conllu_file(path: Path, parses: Mapping[Any, str] = CONLLU) -> Path:
    path.write_text("".join(sentence(qid, rows.split("|")) for qid, rows in parses.items()))
    return path


def val_like() -> list[str]:
    """As many queries of each length as val has (specs/tea_lmr_cqval_splits.md §4.2)."""
    at_least = {8: 1149, 9: 973, 10: 805, 11: 653, 12: 519, 13: 399, 14: 308, 15: 240, 16: 178}
    lengths = [3] * (1550 - at_least[8])
    for words, count in at_least.items():
        lengths += [words] * (count - at_least.get(words + 1, 0))
    return [" ".join(["word"] * length) for length in lengths]


def labelled(queries: Sequence[str], labels: Sequence[Sequence[str]]) -> Labelled:
    """A parse in which the first words of each query have these labels, the others `dep`."""
    sentences = [
        tuple(
            Token(word, given[i] if i < len(given) else "dep")
            for i, word in enumerate(query.split())
        )
        for query, given in zip(queries, labels, strict=True)
    ]
    return Labelled({"source": "test"}, sentences)


def queries_of(path: Path) -> Queries:
    return Queries.read(path, "qvhighlights")


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(cqval_commands, [str(each) for each in arguments])


def good(*arguments: Any) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(*arguments: Any) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())
