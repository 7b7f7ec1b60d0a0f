"""Parse with a spaCy pipeline: the only file of the trainer that imports spaCy, and only if asked.

spaCy is no requirement of the trainer. A pipeline without a parser is refused: `spacy.blank("en")`
tokenises and leaves every dependency empty, which would count zero clauses everywhere.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.annotations.types import Annotation
from data.errors import UsageError, how_to_install
from data.foreign import brief
from data.identity import file_sha256
from training.cqval.clauses import Token, clearnlp
from training.cqval.parses import PARSERS, ROUTES, Labelled

__all__ = ["Spacy"]

_BATCH = 128


class Spacy:
    """An installed spaCy pipeline by its name, or a folder that holds one."""

    option: str | None = "--model"
    default: str | None = "en_core_web_sm"

    def __call__(self, annotations: Sequence[Annotation], given: str | None) -> Labelled:
        """See `Source`.

        Only load pipelines that you trust: installed ones are Python packages.
        """
        model = str(self.default if given is None else given)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            language = _loaded(model)
            labels = _parser_labels(language, model)
            documents = _documents(language, [each.query for each in annotations], model)
            sentences = [_tokens(document, model) for document in documents]
        return Labelled(
            about=_identity(language),
            sentences=sentences,
            inventory=labels,
            remarks=tuple(dict.fromkeys(f"spaCy says: {each.message}" for each in caught)),
        )


def _loaded(model: str) -> Any:
    try:
        import spacy
    except ModuleNotFoundError as error:
        if error.name != "spacy":
            raise
        raise UsageError(
            f"no parser: spaCy is not installed, so the pipeline '{model}' cannot be used; "
            f"{how_to_install('cqval')}, or another route. {ROUTES}"
        ) from None
    try:
        return spacy.load(model)
    except Exception as error:  # a stranger's pipeline may fail in any of its components
        raise UsageError(
            f"no parser: the spaCy pipeline '{model}' cannot be loaded ({_reason(error)}). {ROUTES}"
        ) from None


def _documents(language: Any, queries: list[str], model: str) -> list[Any]:
    try:
        return list(language.pipe(queries, batch_size=_BATCH))
    except Exception as error:  # such as a component that was never trained
        raise UsageError(
            f"no parser: the spaCy pipeline '{model}' cannot parse ({_reason(error)}); is each of "
            f"its components trained: {', '.join(language.pipe_names)}? {ROUTES}"
        ) from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {brief((str(error).splitlines() or [''])[0], 300)}"


def _parser_labels(language: Any, model: str) -> frozenset[str]:
    if not language.has_pipe("parser"):
        there = ", ".join(language.pipe_names) or "none"
        raise UsageError(
            f"no parser: the spaCy pipeline '{model}' has no active component 'parser' (its "
            f"components: {there}), so that every query would have zero clauses. {ROUTES}"
        )
    known = getattr(language.get_pipe("parser"), "labels", ())
    labels = frozenset(clearnlp(each) for each in known)
    if not labels - {"ROOT", "dep"}:
        raise UsageError(
            f"no parser: the parser of the spaCy pipeline '{model}' has no labels, it was never "
            f"trained. {ROUTES}"
        )
    return labels


def _tokens(document: Any, model: str) -> tuple[Token, ...]:
    tokens = tuple(
        Token(token.text, clearnlp(token.dep_), token.pos_)
        for token in document
        if not token.is_space
    )
    if any(not token.label for token in tokens):
        raise UsageError(
            f"no parser: the spaCy pipeline '{model}' gave no dependencies for "
            f"'{document.text[:80]}'. {ROUTES}"
        )
    return tokens


def _identity(language: Any) -> dict[str, Any]:
    import spacy

    meta, folder = language.meta, language.path and Path(language.path)
    return {
        "source": "spacy",
        "name": f"{meta['lang']}_{meta['name']}",
        "version": meta["version"],
        "needs_spacy": meta.get("spacy_version"),
        "spacy": spacy.__version__,
        "components": list(language.pipe_names),
        "meta_sha256": file_sha256(folder / "meta.json") if folder else None,
        "files_sha256": _folder_sha256(folder) if folder else None,
    }


def _folder_sha256(folder: Path) -> str:
    """Of the names and contents of all files: two pipelines of one name and version may differ."""
    sha = hashlib.sha256()
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        if file.suffix not in {".pyc", ".py"}:
            sha.update(f"{file.relative_to(folder).as_posix()}|{file_sha256(file)}|".encode())
    return sha.hexdigest()


PARSERS.register("spacy")(Spacy())
