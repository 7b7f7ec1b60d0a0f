"""What a person sees while the pipeline works."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.progress import Progress, StageProgress, duration


def test_rate_and_rest_count_from_the_first_unit() -> None:
    now = [0.0]
    stage = StageProgress("clip", total=101, before=7, clock=lambda: now[0])
    assert stage.text == "clip: 0/101, ?/s, ? left"
    now[0] = 30.0
    stage.advance(1, 0)
    assert stage.eta_s is None
    now[0] = 40.0
    stage.advance(18, 2)
    assert (stage.rate_hz, stage.eta_s) == (2.0, 40.0)
    assert stage.text == "clip: 19/101, 2 failed, 2/s, 40 s left"


def test_in_the_end_the_rate_is_that_of_the_whole_stage() -> None:
    now = [0.0]
    stage = StageProgress("clip", total=20, before=0, clock=lambda: now[0])
    now[0] = 5.0
    stage.advance(20, 0)
    now[0] = stage.ended = 10.0
    assert stage.text == "clip: 20/20, 2/s, took 10 s"


def test_a_file_gets_plain_lines() -> None:
    file = io.StringIO()
    with Progress(Console(file=file), every_s=0.0) as progress:
        progress.begin("clip", 2, 5)
        progress.advance("clip", done=1)
        progress.advance("clip", failed=1)
        progress.end("clip")
    lines = file.getvalue().splitlines()
    assert lines[0] == "clip: 2 to do, 5 there already"
    assert lines[-1].startswith("clip: 1/2, 1 failed")
    assert len(lines) == 4


def test_lines_are_not_printed_for_every_input() -> None:
    file = io.StringIO()
    with Progress(Console(file=file), every_s=60.0) as progress:
        progress.begin("clip", 1000, 0)
        for _ in range(1000):
            progress.advance("clip", done=1)
    assert len(file.getvalue().splitlines()) == 1


def test_a_terminal_gets_a_table() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with Progress(console) as progress:
        progress.begin("slowfast", 3, 0)
        progress.advance("slowfast", done=3)
        progress.end("slowfast")
    assert "slowfast" in file.getvalue()
    assert "took" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.25, "0.2 s"), (45, "45 s"), (600, "10 min"), (7200, "2.0 h")],
)
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_captions_are_told_with_tokens_and_the_share_of_what_is_possible() -> None:
    now = [0.0]
    stage = StageProgress("captions", total=4, before=0, clock=lambda: now[0])
    now[0] = 10.0
    stage.advance(2, 0)
    stage.counts.update(captions=128, new_tokens=128 * 50, flagged=3)
    stage.limit = lambda tokens: 0.64 * tokens
    told = "128 captions, 12.8/s, 640 tokens/s, 3 flagged, 40% of the computed limit"
    assert stage.counted == told
    assert stage.text.endswith(f"left; {told}")
