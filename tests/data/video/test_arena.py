"""The arena: a place is used again only when nobody sees it, and nothing is believed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.video.arena import GRAIN, Arena, ArenaWriter

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory files are sealed on Linux only")


class Pair:
    """Both ends in one process, as a parent and a child have them."""

    def __init__(self, grains: int) -> None:
        self.tickets: list[int] = []
        self.arena = Arena(grains * GRAIN)
        self.writer = ArenaWriter(self.arena.fd, self.arena.capacity, self._full)

    def _full(self, ticket: int) -> None:
        self.tickets.append(ticket)
        self.arena.grant(ticket)

    def send(self, value: int, size: int = GRAIN) -> NDArray[np.uint8]:
        pixels = self.writer.allocate((size,))
        pixels[:] = value
        offset = self.writer.hand_over(pixels)
        return pixels if offset is None else self.arena.view(offset, (size,))


def test_a_place_is_used_again_only_when_the_last_view_is_gone() -> None:
    pair = Pair(2)
    first, second = pair.send(1), pair.send(2)
    part = first[10:20].reshape(2, 5)
    del first
    third = pair.send(3)  # no room: memory of its own, which is not in the arena
    assert pair.tickets == [1]
    assert third.flags.owndata
    np.testing.assert_array_equal(part, np.ones((2, 5)))
    del part
    fourth = pair.send(4)
    assert pair.tickets == [1]
    assert (second.max(), fourth.max()) == (2, 4)


def test_an_array_that_is_never_handed_over_frees_its_place() -> None:
    pair = Pair(2)
    for _ in range(10):
        pixels = pair.writer.allocate((2 * GRAIN,))
        assert not pixels.flags.owndata
        del pixels
    assert pair.tickets == []


def test_the_lowest_room_is_used_first_so_that_little_memory_is_touched() -> None:
    pair = Pair(100)
    offsets = set()
    for value in range(50):
        pixels = pair.writer.allocate((3, 1000))
        pixels[:] = value
        offset = pair.writer.hand_over(pixels)
        offsets.add(offset)
        np.testing.assert_array_equal(pair.arena.view(offset, (3, 1000)), pixels)
        del pixels
    assert offsets == {0}


def test_pixels_from_elsewhere_are_copied_in() -> None:
    pair = Pair(4)
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2]
    view = pair.arena.view(pair.writer.hand_over(pixels), (2, 2, 3))
    np.testing.assert_array_equal(view, pixels)
    part = pair.writer.allocate((2, 100))[1]
    part[:] = 7
    offset = pair.writer.hand_over(part)
    np.testing.assert_array_equal(pair.arena.view(offset, (100,)), part)


def test_mixed_sizes_come_and_go_without_a_mistake() -> None:
    rng = np.random.default_rng(3)
    pair = Pair(64)
    held: list[tuple[int, NDArray[np.uint8]]] = []
    for step in range(2000):
        size = int(rng.integers(1, 12 * GRAIN))
        value = step % 251
        pixels = pair.writer.allocate((size,))
        pixels[:] = value
        offset = pair.writer.hand_over(pixels)
        view = pixels if offset is None else pair.arena.view(offset, (size,))
        held.append((value, view))
        del pixels, view
        while len(held) > rng.integers(1, 12):
            value, view = held.pop(int(rng.integers(len(held))))
            assert (view == value).all()
            del view
    assert all((view == value).all() for value, view in held)


@pytest.mark.parametrize(
    ("offset", "shape"),
    [
        (-GRAIN, (10,)),
        (1, (10,)),
        (2 * GRAIN, (10,)),
        (GRAIN, (GRAIN + 1,)),
        (0, (1 << 62, 1 << 62)),
        (0, (0,)),
        (1 << 80, (10,)),
        (0.0, (10,)),
        (True, (10,)),
        (None, (10,)),
        ("0", (10,)),
    ],
)
def test_a_place_that_is_none_is_not_believed(offset: object, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a window of"):
        Pair(2).arena.view(offset, shape)


def test_a_place_that_is_in_use_is_not_given_out_twice() -> None:
    pair = Pair(4)
    view = pair.arena.view(GRAIN, (2 * GRAIN,))
    for offset in (0, GRAIN, 2 * GRAIN):
        with pytest.raises(ValueError, match="in use"):
            pair.arena.view(offset, (2 * GRAIN,))
    del view
    pair.arena.view(0, (4 * GRAIN,))


@LINUX
def test_a_child_cannot_take_the_pages_away() -> None:
    arena = Arena(4 * GRAIN)
    for size in (0, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)
    arena.close_fd()


FORKED = """
import gc, os, sys
import numpy as np
from data.video.arena import GRAIN, Arena, ArenaWriter
arena = Arena(GRAIN)
writer = ArenaWriter(os.dup(arena.fd), GRAIN, arena.grant)
pixels = writer.allocate((GRAIN,))
pixels[:] = 1
view = arena.view(writer.hand_over(pixels), (GRAIN,))
if os.fork() == 0:
    del view
    gc.collect()
    os._exit(0)
assert os.wait()[1] == 0, "the fork failed"
assert writer.allocate((GRAIN,)).flags.owndata, "the fork freed what its parent still sees"
del view
assert not writer.allocate((GRAIN,)).flags.owndata
"""


def test_a_fork_that_drops_its_copy_of_a_view_frees_nothing(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", FORKED], check=True, env=environment, timeout=60)
