"""Parses in CoNLL-U files: counted exactly, or refused by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cqval_files import CONLLU, QUERIES, annotation_file, conllu_file, queries_of, sentence

from data.errors import UsageError
from data.foreign import LONGEST_LINE
from training.cqval.conllu_source import Conllu, read_conllu
from training.cqval.parses import Labelled


def parsed(tmp_path: Path, text: str, queries: dict[int, str]) -> Labelled:
    rows = queries_of(annotation_file(tmp_path / "rows.jsonl", queries)).annotations
    path = tmp_path / "parses.conllu"
    path.write_text(text)
    return Conllu()(rows, str(path))


def test_clauses_are_counted_exactly_by_their_labels(tmp_path: Path) -> None:
    rows = queries_of(annotation_file(tmp_path / "rows.jsonl")).annotations
    found = Conllu()(rows, str(conllu_file(tmp_path / "val.conllu")))
    assert found.clauses(None).tolist() == [2, 1, 0]
    assert found.clauses(["acl"]).tolist() == [1, 0, 0]
    assert found.clauses(["relcl"]).tolist() == [0, 1, 0]
    assert found.clauses(["acl:relcl", "advcl"]).tolist() == [1, 1, 0]
    assert found.about["name"] == "unknown"
    assert any("does not say which parser" in each for each in found.remarks)


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    rows = queries_of(annotation_file(tmp_path / "rows.jsonl")).annotations
    backwards = dict(reversed(CONLLU.items()))
    found = Conllu()(rows, str(conllu_file(tmp_path / "val.conllu", backwards)))
    assert found.clauses(None).tolist() == [2, 1, 0]


def test_sentences_of_one_query_are_counted_together_and_the_parser_is_noted(
    tmp_path: Path,
) -> None:
    text = sentence(5, ["He 2 nsubj", "tries 0 root", "running 2 xcomp"], "# parser = udp 2.1")
    text += sentence(5, ["Singing 2 csubj", "helps 0 root"], "# parser = udp 2.1")
    found = parsed(tmp_path, text, {5: "He tries running Singing helps"})
    assert found.clauses(None).tolist() == [2]
    assert found.about["name"] == "udp 2.1"
    assert found.remarks == ()


def test_ranges_and_empty_nodes_are_no_words_but_their_text_is_read(tmp_path: Path) -> None:
    blank = ["_"] * 8
    rows = (
        sentence(1, ["They 4 nsubj", "do 4 aux", "n't 4 advmod", "go 0 root"]).rstrip().split("\n")
    )
    rows.insert(2, "\t".join(["2-3", "don't", *blank]))
    rows.append("\t".join(["4.1", "ghost", *blank]))
    found = parsed(tmp_path, "\n".join(rows) + "\n", {1: "They don't go"})
    assert [token.text for token in found.sentences[0]] == ["They", "do", "n't", "go"]


def test_quotation_marks_and_case_of_a_treebank_are_the_same_text(tmp_path: Path) -> None:
    text = sentence(1, ["`` 2 punct", "hi 0 root", "'' 2 punct"])
    assert parsed(tmp_path, text, {1: '"Hi"'}).clauses(None).tolist() == [0]


def test_a_parse_of_another_sentence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 1: the parse of qid 1 is of another text: 'a dog'"):
        parsed(tmp_path, sentence(1, ["a 2 det", "dog 0 root"]), {1: "a cat"})


def test_a_parse_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    one = sentence(1, ["a 2 det", "dog 0 root"])
    with pytest.raises(UsageError, match="another text: 'a dog a dog'"):
        parsed(tmp_path, one + one, {1: "a dog"})


def test_a_query_without_a_parse_is_refused_and_one_too_many_is_told(tmp_path: Path) -> None:
    text = sentence(1, ["a 2 det", "dog 0 root"])
    with pytest.raises(UsageError, match=r"lacks 1 of the 2 queries .*\(qid 2\)"):
        parsed(tmp_path, text, {1: "a dog", 2: "a cat"})
    found = parsed(tmp_path, text + sentence(9, ["x 0 root"]), {1: "a dog"})
    assert any("also has 1 queries" in each for each in found.remarks)


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("# qid", "\ufeff# qid")])
def test_files_of_windows_are_read(tmp_path: Path, change: tuple[str, str]) -> None:
    path = tmp_path / "p.conllu"
    path.write_bytes(GOOD.replace(*change).encode())
    (found,) = read_conllu(path)
    assert found.comments == {"qid": "1"}
    assert found.surface == ["a", "dog"]


def test_a_chain_of_many_words_is_a_tree(tmp_path: Path) -> None:
    words = ["w 0 root", *(f"w {place} dep" for place in range(1, 20_000))]
    (tmp_path / "p.conllu").write_text(sentence(1, words))
    assert len(next(read_conllu(tmp_path / "p.conllu")).tokens) == 20_000


GOOD = sentence(1, ["a 2 det", "dog 0 root"])
CIRCLE = sentence(1, ["a 2 det", "b 1 dep", "dog 0 root"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("# qid = 1\n", ""), "line 1: the sentence has no '# qid = ...'"),
        (GOOD.replace("\t_\t_\n", "\n", 1), "line 2: expected 10 columns between tabs"),
        (GOOD.replace("det", "_"), "line 2: the word 'a' has HEAD '2' and DEPREL '_'"),
        (GOOD.replace("\t2\tdet", "\t_\tdet"), "line 2: the word 'a' has HEAD '_'"),
        (
            GOOD.replace("\t2\tdet", "\t7\tdet"),
            "line 1: the sentence ends after 2 words, but a head",
        ),
        (GOOD.replace("\t2\tdet", "\t0\troot"), "line 1: the sentence has 2 roots"),
        (GOOD.replace("\t2\tdet", "\t" + "9" * 5000 + "\tdet"), "line 2: the word 'a' has HEAD"),
        (GOOD.replace("2\tdog", "3\tdog"), "line 3: expected word 2, found the id '3'"),
        (GOOD.strip() + "\n" + GOOD, "line 4: a second qid in one sentence; are sentences not"),
        (GOOD.strip() + GOOD[len("# qid = 1") :], "line 4: expected word 3, found the id '1'"),
        (GOOD.replace("\t0\troot", "\t1\troot"), "line 1: the sentence has 0 roots"),
        (CIRCLE, "line 1: the heads of word 1 go round in a circle"),
        (CIRCLE.replace("\t2\tdet", "\t1\tdet"), "line 1: the heads of word 1 go round"),
        (GOOD.replace("\t", "  "), "line 2: expected 10 columns between tabs (CoNLL-U), found 1"),
        ("# x = " + "a" * LONGEST_LINE, "line 1 is longer than the 8,388,608 bytes that are read"),
        ("# qid = 1\n", "line 1: the sentence ends after 0 words"),
        ("# qid = 1\n3-4\tx" + "\t_" * 8 + "\n", "line 2: the range 3-4 does not stand before"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(tmp_path, text, {1: "a dog"})
    assert message in str(caught.value)


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "parses.conllu"
    path.write_bytes(b"# qid = \xff\xfe\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        list(read_conllu(path))
    with pytest.raises(UsageError, match="does not exist"):
        list(read_conllu(tmp_path / "none.conllu"))


def test_qids_that_are_the_same_as_text_are_refused(tmp_path: Path) -> None:
    rows = queries_of(annotation_file(tmp_path / "rows.jsonl", {1: "a dog", "1": "a dog"}))
    with pytest.raises(UsageError, match="as a number and as a string"):
        Conllu()(rows.annotations, str(conllu_file(tmp_path / "val.conllu")))


def test_the_fixture_holds_the_queries() -> None:
    assert set(CONLLU) == set(QUERIES)
