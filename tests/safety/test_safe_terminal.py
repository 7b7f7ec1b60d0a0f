"""What is printed: words from outside steer neither the terminal nor the page."""

from __future__ import annotations

import io

import pytest
import typer
from rich.table import Table
from typer.testing import CliRunner

from data.commands import program, reported
from data.errors import UsageError
from data.terminal import plain_console, printable, say, shortened
from pipeline.progress import Progress

EVIL = "a\x1b[2J\x1b]0;title\x07\x9b31m\r\x08\u202egnp.exe\u2028\ud800b"
SHOWN = "a\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\r\\x08\\u202egnp.exe\\u2028\\ud800b"


def test_control_signs_are_written_out_and_other_signs_stay() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("Grüße\n\t日本 👍") == "Grüße\n\t日本 👍"


def test_the_console_writes_its_own_colours_and_nobody_elses() -> None:
    file = io.StringIO()
    console = plain_console(file=file, force_terminal=True, width=200, color_system="truecolor")
    table = Table("name")
    table.add_row(EVIL)
    console.print(table)
    console.print(EVIL)
    console.print("ours", style="red")
    text = file.getvalue()
    assert text.count("a\\x1b[2J\\x1b]0;title") == 2
    assert "\x1b[31mours\x1b[0m" in text
    for sign in ("\x1b[2J", "\x07", "\x9b", "\r", "\x08", "\u202e"):
        assert sign not in text


def test_brackets_in_a_name_are_neither_colours_nor_errors() -> None:
    file = io.StringIO()
    console = plain_console(file=file, force_terminal=True, width=200)
    table = Table("name", title="store [/x] of :smile:")
    table.add_row("pip install '.[pipeline]'")
    console.print(table)
    console.print("[red]/[/x]")
    assert all(
        each in file.getvalue()
        for each in ("store [/x] of :smile:", "pip install '.[pipeline]'", "[red]/[/x]")
    )


def test_notes_of_a_run_go_through_the_console_with_brackets_as_they_are() -> None:
    file = io.StringIO()
    progress = Progress(plain_console(file=file, width=200))
    progress.note(f"video [bold red]{EVIL}[/] failed")
    shown = SHOWN
    for dropped in ("\\x07", "\\r", "\\x08"):  # rich leaves these out itself
        shown = shown.replace(dropped, "")
    assert file.getvalue() == f"video [bold red]{shown}[/] failed\n"


def test_an_error_of_a_command_is_printable_and_short(capsys: pytest.CaptureFixture[str]) -> None:
    app = program("toy", "A toy.")

    @app.command()
    @reported("toy")
    def fail() -> None:
        raise UsageError(f"cannot read '{EVIL}' {'x' * 10**6}")

    @app.command()
    def other() -> None:
        say(EVIL)

    found = CliRunner().invoke(app, ["fail"])
    assert found.exit_code == 2
    assert found.stderr.startswith(f"toy: cannot read '{SHOWN}' xxx")
    assert "characters cut" in found.stderr
    assert len(found.stderr) < 30_000
    assert CliRunner().invoke(app, ["other"]).stdout == SHOWN + "\n"
    assert isinstance(app, typer.Typer)
    assert shortened("short") == "short"
