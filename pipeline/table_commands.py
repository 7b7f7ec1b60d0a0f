"""`pipeline weights glove` and `extract-embedding`: tables of text encoders (`models.word_tables`).

Neither downloads anything: GloVe's vectors and LLaMA's checkpoint are the user's own files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from data.annotations import guess_dataset, load_annotations
from data.errors import UsageError, some
from data.foreign import json_object, text_lines
from data.store import Store
from data.store.files import atomic_write
from data.store.place import place_of
from data.terminal import new_table, plain_console, say
from models.word_tables import open_table
from pipeline.glove_table import Vectors, Vocabulary, glove_table, read_vectors
from pipeline.options import JsonOption, answered, is_there, new_console, open_store

__all__ = ["table_commands", "texts_of"]

table_commands = typer.Typer()

_SHOWN = 20
_CAPTION = "caption"

OutArgument = Annotated[Path, typer.Argument(help="The table to write: a .safetensors file.")]
DtypeOption = Annotated[str, typer.Option(help="Type of numbers in the table: float16 or float32.")]


@table_commands.command()
@answered
def glove(
    vectors: Annotated[
        Path, typer.Argument(help="GloVe's file, e.g. glove.840B.300d.zip; .txt, .gz or .zip.")
    ],
    out: OutArgument,
    words_from: Annotated[
        list[str] | None,
        typer.Option(
            "--words-from",
            help="Texts whose words are wanted: a store (its queries and captions), an annotation "
            "file, a JSONL with `caption`, or a .txt with a text per line; may be repeated. "
            "Default: every word of the file.",
        ),
    ] = None,
    dim: Annotated[int, typer.Option(min=1, help="Numbers of a vector.")] = 300,
    dtype: DtypeOption = "float16",
    as_json: JsonOption = False,
) -> None:
    """Write the table of text encoder `glove`: the vectors of the words of your texts."""
    _check_out(out, "glove")
    console = plain_console(quiet=True) if as_json else new_console()
    vocabulary = Vocabulary()
    for place in words_from or []:
        before = vocabulary.texts
        vocabulary.add(texts_of(place))
        console.print(f"{place}: {vocabulary.texts - before:,} texts", soft_wrap=True)
    if words_from and not vocabulary.words:
        raise UsageError(f"no text was found in {some(words_from)}: nothing to look up")
    wanted = vocabulary.wanted if words_from else None
    found = _read(vectors, dim, wanted, console)
    content = glove_table(found, wanted, dtype)
    atomic_write(place_of(str(out)), content)
    told = _glove_figures(found, vocabulary, len(content))
    if as_json:
        say(json.dumps({"table": str(out), **told}, indent=2))
        return
    _print_figures(console, f"GloVe table {out}", told)
    console.print(f"in pipeline.yaml: {_yaml('glove', out)}", soft_wrap=True)


@table_commands.command("extract-embedding")
@answered
def extract_embedding_(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A LLaMA, Vicuna or LLaVA in any layout: a folder, or hf:ORG/NAME."),
    ],
    out: OutArgument,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.model or .json; default: the one in the checkpoint's folder."),
    ] = None,
    tensor: Annotated[
        str | None, typer.Option(help="Name of the embeddings, if there are several.")
    ] = None,
    dtype: DtypeOption = "float16",
    as_json: JsonOption = False,
) -> None:
    """Write the table of text encoder `llama_embedding`: input embeddings and their tokenizer."""
    from models.text.extract import extract_embedding

    _check_out(out, "llama_embedding")
    found = extract_embedding(checkpoint, tokenizer=tokenizer, tensor=tensor, dtype=dtype)
    atomic_write(place_of(str(out)), found.content)
    told = {
        "tensor": found.tensor,
        "rows": found.rows,
        "rows that no text reaches": found.dropped,
        "numbers of a row": found.dim,
        "type in the checkpoint": found.dtype,
        "largest error of rounding": found.error,
        "tokenizer": str(found.tokenizer),
        "bytes": len(found.content),
    }
    if as_json:
        say(json.dumps({"table": str(out), **told}, indent=2))
        return
    console = new_console()
    _print_figures(console, f"Embedding table {out}", told)
    console.print(f"in pipeline.yaml: {_yaml('llama_embedding', out)}", soft_wrap=True)


def texts_of(place: str) -> Iterator[str]:
    """The queries and captions of a place.

    Args:
        place: a store; an annotation file of a data set that its content tells; a JSONL whose rows
            have a `caption`; a .txt with one text per line.

    Raises:
        UsageError: nothing of these.
    """
    path = Path(place).expanduser()
    if not path.is_file():
        where = place_of(place)
        if not is_there(where):
            raise UsageError(
                f"--words-from '{place}' is neither a file nor a store (a folder with store.json)"
            )
        yield from _texts_of_store(open_store(where))
    elif _is_captions(path):
        yield from _captions_of(path)
    elif path.suffix == ".txt" and not _is_charades(path):
        yield from (line.decode("utf-8", "replace") for _, line in text_lines(path, "the texts"))
    else:
        yield from (row.query for row in load_annotations(guess_dataset(path), path))


def _texts_of_store(store: Store) -> Iterator[str]:
    for split in store.splits():
        yield from (row.query for row in store.annotations(split))
    if "captions" in store.current:
        reader = store.reader("captions", store.current["captions"])
        for id_ in reader.ids():
            yield from reader.row(id_).texts["caption"]


def _first_line(path: Path) -> bytes:
    return next((line for _, line in text_lines(path, "the texts")), b"")


def _is_charades(path: Path) -> bool:
    return b"##" in _first_line(path)


def _is_captions(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return False
    return _CAPTION in json_object(_first_line(path), f"{path}, line 1")


def _captions_of(path: Path) -> Iterator[str]:
    for number, line in text_lines(path, "the captions"):
        caption = json_object(line, f"{path}, line {number}").get(_CAPTION)
        if not isinstance(caption, str):
            raise UsageError(f"{path}, line {number} has no text `{_CAPTION}`")
        yield caption


def _read(path: Path, dim: int, wanted: set[str] | None, console: Console) -> Vectors:
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(path.name, total=None)
        return read_vectors(
            path, dim, wanted, lambda done, all_: bar.update(task, completed=done, total=all_)
        )


def _glove_figures(found: Vectors, vocabulary: Vocabulary, size: int) -> dict[str, Any]:
    """What a user wants to know: above all which words were not found."""
    from models.text.base import is_sign

    words = {word: count for word, count in vocabulary.words.items() if not is_sign(word)}
    unknown = {word: count for word, count in words.items() if word not in found.rows}
    total = sum(words.values())
    most = sorted(unknown.items(), key=lambda each: (-each[1], each[0]))
    return {
        "texts": vocabulary.texts,
        "words": total,
        "different words": len(words),
        "unknown words": sum(unknown.values()),
        "different unknown words": len(unknown),
        "share of unknown words": sum(unknown.values()) / total if total else 0.0,
        "most frequent unknown": dict(most[:_SHOWN]),
        "vectors in the table": len(found.rows),
        "lines of the file": found.lines,
        "lines left out": found.left_out,
        "words that came twice": found.twice,
        "bytes": size,
    }


def _print_figures(console: Console, title: str, told: Mapping[str, Any]) -> None:
    table = new_table(title, "", "")
    for name, value in told.items():
        table.add_row(name, _shown(value))
    console.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{word} ({count:,})" for word, count in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _yaml(encoder: str, out: Path) -> str:
    return f"narratives: {{encoder: {encoder}, checkpoint: {out.resolve()}}}"


def _check_out(out: Path, kind: Literal["glove", "llama_embedding"]) -> None:
    """A table may be made again; no other file is written over."""
    if out.is_dir():
        raise UsageError(
            f"'{out}' is a folder; name the file to write, e.g. {out / kind}.safetensors"
        )
    if out.exists():
        try:
            open_table(out, kind)
        except UsageError as error:
            raise UsageError(f"'{out}' is not written over: {error}") from None
