"""Parses in a CoNLL-U file, https://universaldependencies.org/format.html.

    # qid = 2579
    # parser = stanza 1.9.2
    1   She     she     PRON    _   _   2   nsubj   _   _
    2   cooks   cook    VERB    _   _   0   root    _   _

Each sentence names its query; a query may have several sentences. Words are counted, not the ranges
of multiword tokens ("1-2 don't") or empty nodes ("3.1"). The signs of the sentences of a query must
be those of the query, blanks and case aside, so that no parse is counted for another query.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from data.annotations.types import Annotation
from data.errors import UsageError, some
from data.foreign import brief, text_lines
from data.identity import file_sha256
from training.cqval.clauses import Token, clearnlp
from training.cqval.parses import PARSERS, Labelled, by_qid_text, check_complete

__all__ = ["Conllu", "Sentence", "read_conllu"]

_COLUMNS = 10
_WORD = re.compile(r"[1-9][0-9]{0,5}")
_RANGE = re.compile(r"([1-9][0-9]{0,5})-([1-9][0-9]{0,5})")
_EMPTY = re.compile(r"[0-9]{1,6}\.[1-9][0-9]{0,5}")
_HEAD = re.compile(r"[0-9]{1,6}")
_COMMENT = re.compile(r"#\s*(\S+)\s*=\s*(.*)")

# signs that treebanks write in another way; "``" and "''" are quotation marks of the Penn Treebank
_SIGNS = {"``": '"', "''": '"', "“": '"', "”": '"', "‘": "'", "’": "'"}
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}


@dataclass
class Sentence:
    """One sentence of the file.

    Args:
        where: file and line of its first row.
        comments: `# key = value`.
        tokens: its syntactic words.
        surface: what is written: multiword tokens in place of their words.
    """

    where: str
    comments: dict[str, str] = field(default_factory=dict)
    tokens: list[Token] = field(default_factory=list)
    surface: list[str] = field(default_factory=list)
    _heads: list[int] = field(default_factory=list)
    _covered: int = 0

    def add(self, line: str, where: str) -> None:
        """Take one row; UsageError that begins with `where` if it is none."""
        columns = line.split("\t")
        if len(columns) != _COLUMNS:
            raise UsageError(
                f"{where}: expected {_COLUMNS} columns between tabs (CoNLL-U), found {len(columns)}"
            )
        number, form = columns[0], columns[1]
        if _EMPTY.fullmatch(number):
            return
        if found := _RANGE.fullmatch(number):
            self._start_range(int(found[1]), int(found[2]), form, where)
            return
        if not _WORD.fullmatch(number) or int(number) != len(self.tokens) + 1:
            raise UsageError(
                f"{where}: expected word {len(self.tokens) + 1}, found the id {brief(number)}; "
                "are sentences not apart by an empty line?"
            )
        self._add_word(columns, where)
        if len(self.tokens) > self._covered:
            self.surface.append(form)

    def finish(self) -> None:
        """UsageError if this is no whole tree."""
        words = len(self.tokens)
        outside = [head for head in self._heads if head > words]
        if not words or outside or self._covered > words:
            raise UsageError(
                f"{self.where}: the sentence ends after {words} words"
                + (f", but a head is word {outside[0]}" if outside else "")
                + "; is the file cut?"
            )
        if self._heads.count(0) != 1:
            raise UsageError(
                f"{self.where}: the sentence has {self._heads.count(0)} roots (HEAD 0), not 1"
            )
        if lost := self._lost():
            raise UsageError(
                f"{self.where}: the heads of word {lost} go round in a circle; a parse is a tree"
            )

    def comment(self, name: str, value: str, where: str) -> None:
        """Take `# name = value`; UsageError that begins with `where` for a second qid."""
        if name == "qid" and name in self.comments:
            raise UsageError(
                f"{where}: a second qid in one sentence; are sentences not apart by an empty line?"
            )
        self.comments[name] = value

    def _lost(self) -> int | None:
        """A word from which no way leads to the root; None if there is none."""
        reached = {0}
        for word in range(1, len(self._heads) + 1):
            way: dict[int, None] = {}
            while word not in reached and word not in way:
                way[word] = None
                word = self._heads[word - 1]
            if word in way:
                return word
            reached.update(way)
        return None

    def _start_range(self, first: int, last: int, form: str, where: str) -> None:
        if first != len(self.tokens) + 1 or last < first or first <= self._covered:
            raise UsageError(f"{where}: the range {first}-{last} does not stand before its words")
        self.surface.append(form)
        self._covered = last

    def _add_word(self, columns: Sequence[str], where: str) -> None:
        form, pos, head, label = columns[1], columns[3], columns[6], columns[7]
        if label in {"_", ""} or not _HEAD.fullmatch(head):
            raise UsageError(
                f"{where}: the word {brief(form)} has HEAD {brief(head)} and DEPREL "
                f"{brief(label)}; the file must be parsed, not only tokenised"
            )
        self._heads.append(int(head))
        self.tokens.append(Token(form, clearnlp(label), "" if pos == "_" else pos))


def read_conllu(path: Path) -> Iterator[Sentence]:
    """The sentences of a CoNLL-U file.

    Raises:
        UsageError: by file and line, what is wrong with it.
    """
    sentence: Sentence | None = None
    before = 0
    for number, line in text_lines(path, "the parses"):
        where = f"{path}, line {number}"
        if sentence and number > before + 1:  # `text_lines` leaves empty lines out
            yield _finished(sentence)
            sentence = None
        before = number
        sentence = sentence or Sentence(where)
        text = _decoded(line, where)
        if not text.startswith("#"):
            sentence.add(text, where)
        elif found := _COMMENT.fullmatch(text):
            sentence.comment(found[1], found[2].strip(), where)
    if sentence:
        yield _finished(sentence)


def _finished(sentence: Sentence) -> Sentence:
    sentence.finish()
    return sentence


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{where} is not UTF-8; CoNLL-U is") from None


class Conllu:
    """A CoNLL-U file with a parse for every query."""

    option: str | None = "--parses"
    default: str | None = None

    def __call__(self, annotations: Sequence[Annotation], given: str | None) -> Labelled:
        """See `Source`."""
        path = Path(given or "")
        sentences: dict[str, list[Sentence]] = {}
        for each in read_conllu(path):
            sentences.setdefault(_qid(each), []).append(each)
        wanted = by_qid_text(annotations)
        remarks = [check_complete(wanted, sentences, path)]
        for qid, annotation in wanted.items():
            _check_text(annotation, sentences[qid])
        parsers = _parsers(sentences)
        if not parsers:
            remarks.append(f"{path.name} does not say which parser made it ('# parser = ...')")
        about: dict[str, Any] = {
            "source": "conllu",
            "name": some(parsers, 4) or "unknown",
            "file": path.name,
            "sha256": file_sha256(path),
        }
        return Labelled(
            about=about,
            sentences=[
                tuple(token for each in sentences[qid] for token in each.tokens) for qid in wanted
            ],
            remarks=tuple(each for each in remarks if each),
        )


def _parsers(sentences: dict[str, list[Sentence]]) -> list[str]:
    """Which parsers made the file; empty if not every sentence says it."""
    names = {each.comments.get("parser", "") for parts in sentences.values() for each in parts}
    return [] if "" in names else sorted(names)


def _qid(sentence: Sentence) -> str:
    if "qid" not in sentence.comments:
        raise UsageError(
            f"{sentence.where}: the sentence has no '# qid = ...', so that its query is not known; "
            f"its comments: {some(sorted(sentence.comments)) or 'none'}"
        )
    return sentence.comments["qid"]


def _check_text(annotation: Annotation, sentences: Sequence[Sentence]) -> None:
    parsed = [form for each in sentences for form in each.surface]
    if _signs(parsed) != _signs(annotation.query.split()):
        _refuse_text(annotation, sentences[0].where, " ".join(parsed))


def _refuse_text(annotation: Annotation, where: str, parsed: str) -> NoReturn:
    raise UsageError(
        f"{where}: the parse of qid {annotation.qid} is of another text: {brief(parsed)}, but the "
        f"query is {brief(annotation.query)}; parse the queries of these annotations"
    )


def _signs(forms: Iterable[str]) -> str:
    text = "".join(_BRACKETS.get(form, form) for form in forms)
    for other, usual in _SIGNS.items():
        text = text.replace(other, usual)
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


PARSERS.register("conllu")(Conllu())
