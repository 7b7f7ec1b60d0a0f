"""What reaches a terminal: words from outside cannot steer it.

File names, captions and messages may hold escape sequences, which clear a screen, change a title or
paste into the shell's input, and signs that reverse the reading order. They are shown as `\\x1b`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table

__all__ = [
    "decimals_of",
    "new_table",
    "plain_console",
    "printable",
    "say",
    "shortened",
    "size_text",
]

# C0 without line feed and tab, DEL and C1; the marks that change the reading order and the two odd
# line ends of Unicode; lone surrogates (names that are not UTF-8), which cannot be printed at all.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

_LONGEST = 20_000
"""Characters of one message; a whole traceback has a tenth."""


def printable(text: str) -> str:
    """`text` with everything that steers a terminal written out, as in `\\x1b[2J`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str, *, err: bool = False) -> None:
    """Write one message and a line feed; line feeds inside stay."""
    typer.echo(printable(text), err=err)


def shortened(text: str) -> str:
    """`text`, cut in the middle where nobody would read so much."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … {len(text) - 2 * half} characters cut … {text[-half:]}"


def size_text(count: int) -> str:
    """A number of bytes for a person."""
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= step:
            return f"{count / step:,.1f} {unit}"
    return f"{count} B"


def plain_console(**options: Any) -> Console:
    """A rich console whose own colours work and whose words cannot steer the terminal.

    Words are printed as they are: `[red]` in the name of a folder is no colour. Colours are given
    as styles and `rich.text.Text`.

    Args:
        options: of `rich.console.Console`.
    """
    console = Console(markup=False, emoji=False, highlight=False, **options)
    console.push_render_hook(_Plain())
    return console


def new_table(title: str, *columns: str) -> Table:
    """An empty table; columns whose names end with '>' are numbers."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left")
    return table


class _Plain(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_PlainRenderable(each) for each in renderables]


class _PlainRenderable:
    """Renders another thing; its words, not its control codes, are made printable."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _printable(console.render(self._inner, options))


def _printable(segments: Iterable[Segment]) -> Iterable[Segment]:
    for text, style, control in segments:
        yield Segment(text if control else printable(text), style, control)


def decimals_of(values: Iterable[float | None]) -> int:
    """How many decimals a column of rounded numbers needs: those of the longest, at least two.

    Most evaluators give percent with two decimals, those of highlight detection shares with five.
    """
    written = [f"{each:.6f}".rstrip("0") for each in values if each is not None]
    return max([2, *(len(each.partition(".")[2]) for each in written)])
