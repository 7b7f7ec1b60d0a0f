"""Sound through the child process, and what the parent believes of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding_children import children
from sound_films import RATE_HZ, MakeFilm, joined, read, request, tones, write_film

from data.errors import InputError
from data.video import IsolatedDecoder, Video, wire
from data.video.types import SoundRequest


@pytest.fixture
def make_film(tmp_path: Path) -> MakeFilm:
    """`write_film` by name."""
    return lambda name, *args, **more: write_film(tmp_path / name, *args, **more)


@pytest.fixture
def isolated() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(buffer_bytes=1 << 20) as decoder:
        yield decoder


def test_a_child_process_gives_the_same_sound(
    make_film: MakeFilm, make_video: Any, isolated: IsolatedDecoder
) -> None:
    film = make_film("b.mp4", tones(44_100, 2, 4.0), 44_100, "aac", "stereo")
    want = read(film, request(3))
    got = list(isolated.sounds(film, request(3)))
    assert [(each.unit, each.heard) for each in got] == [(each.unit, each.heard) for each in want]
    np.testing.assert_array_equal(joined(got), joined(want))
    assert list(isolated.sounds(make_video(), request(3))) == []
    assert isolated.probe(film).has_audio  # the same child goes on with pictures


def test_sound_that_is_read_ahead_is_the_same_and_is_read_once(
    make_film: MakeFilm, isolated: IsolatedDecoder
) -> None:
    films = [make_film(f"{n}.mp4", tones(44_100, 2, 4.0), 44_100, "aac", "stereo") for n in "ab"]
    want = [list(isolated.sounds(film, request(3))) for film in films]
    isolated.prefetch_sound(films[1], request(3))
    (ahead,) = isolated._running
    got = isolated.sounds(films[1], request(3))
    first = next(got)
    assert isolated._running == [ahead], "the work that was begun is taken over"
    np.testing.assert_array_equal(joined([first, *got]), joined(want[1]))
    isolated.prefetch_sound(films[1], request(3))
    other = list(isolated.sounds(films[0], request(3)))  # not what was read ahead
    np.testing.assert_array_equal(joined(other), joined(want[0]))


def test_a_child_that_dies_costs_one_attempt(
    make_film: MakeFilm, isolated: IsolatedDecoder
) -> None:
    film = make_film("long.mov", np.zeros((1, 8_000 * 300)), 8_000, "pcm_s16le", seconds=1.0)
    windows = isolated.sounds(film, request(150))
    next(windows)
    (child,) = children()
    os.kill(child, signal.SIGKILL)
    with pytest.raises(InputError, match="SIGKILL") as caught:
        list(windows)
    assert caught.value.reason == "decoder-crashed"
    assert len(list(isolated.sounds(film, request(3)))) == 3


def test_a_job_for_sound_travels(tmp_path: Path) -> None:
    wanted = SoundRequest("panns", np.array([0.0, 0.7]), 0.7, RATE_HZ)
    job = wire.Job("sounds", "pyav", Video("a", tmp_path / "a.mp4", 1.0), sound=wanted)
    header, payload = job.pack()
    there = wire.Job.unpack(wire.Message(header, np.frombuffer(payload, np.uint8)))
    assert there.sound is not None
    assert there.sound.starts_s.tolist() == [0.0, 0.7]
    assert (there.sound.length_s, there.sound.rate_hz, there.task) == (0.7, RATE_HZ, "sounds")


@pytest.mark.parametrize(
    ("header", "samples"),
    [
        ({"unit": 2}, 10),
        ({"unit": -1}, 10),
        ({"unit": True}, 10),
        ({"request": "other"}, 10),
        ({"heard": 1.5}, 10),
        ({"heard": None}, 10),
        ({}, 9),
    ],
)
def test_what_a_child_claims_about_sound_is_checked(header: dict[str, Any], samples: int) -> None:
    wanted = SoundRequest("sound", np.arange(2.0), 1.0, 10)
    good: dict[str, Any] = {"kind": "sound", "request": "sound", "unit": 1, "heard": 1.0}
    payload = np.zeros(10, "<f4")
    assert wire.unpack_sound(wire.Message(good, payload.view(np.uint8)), wanted).unit == 1
    message = wire.Message(good | header, payload[:samples].view(np.uint8))
    with pytest.raises(ValueError, match="the sound of window"):
        wire.unpack_sound(message, wanted)
    payload[3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        wire.unpack_sound(wire.Message(good, payload.view(np.uint8)), wanted)
