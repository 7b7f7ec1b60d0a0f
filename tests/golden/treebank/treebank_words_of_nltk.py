"""Makes words.json with nltk, which the project does not need:

pip install --target /tmp/nltk nltk
PYTHONPATH=/tmp/nltk python tests/golden/treebank/treebank_words_of_nltk.py ../shared/annotations
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def sentences(folder: Path) -> list[str]:
    """Every text with a blank in it of every annotation file, once, in order."""
    return sorted({text for file in sorted(folder.rglob("*")) for text in _texts(file)})


def _texts(file: Path) -> Iterator[str]:
    if file.suffix == ".jsonl":
        for line in file.read_text().splitlines():
            yield from _strings(json.loads(line) if line.strip() else None)
    elif file.suffix == ".json":
        yield from _strings(json.loads(file.read_text()))
    elif file.suffix == ".txt":
        yield from (line.split("##")[1] for line in file.read_text().splitlines() if "##" in line)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str) and " " in value:
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def digest(rows: Iterator[list[str]]) -> str:
    """One hash of the tokens of all sentences."""
    hashed = hashlib.sha256()
    for tokens in rows:
        hashed.update(("\t".join(tokens) + "\n").encode())
    return hashed.hexdigest()


def tokens(text: str) -> list[str]:
    """As EMB and VSLNet call it, but for the ends of sentences: each text counts as one."""
    from nltk.tokenize import word_tokenize  # not needed to read the sentences

    return word_tokenize(text.strip().lower(), preserve_line=True)


def main(folder: Path) -> None:
    found = sentences(folder)
    odd = json.loads((HERE / "odd.json").read_text())
    signs = "\"'’;:()!?$%&@*-"
    marked = [each for each in found if set(signs) & set(each) or ". " in each]
    content = {
        "source": "nltk.word_tokenize(text.strip().lower(), preserve_line=True)",
        "nltk": importlib.metadata.version("nltk"),
        "sentences": len(found),
        "sha256": digest(tokens(each) for each in found),
        "examples": [[each, tokens(each)] for each in [*odd, *marked[::150]]],
    }
    (HERE / "words.json").write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
