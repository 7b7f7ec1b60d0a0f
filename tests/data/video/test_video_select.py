from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.video import FrameRequest, View
from data.video.select import TOLERANCE_S, Picture, Selection, serve


def picture(index: int, converted: list[tuple[int, View]] | None = None) -> Picture:
    """A 1x1 picture that carries its index and writes down its conversions."""

    def convert(view: View) -> NDArray[np.uint8]:
        if converted is not None:
            converted.append((index, view))
        return np.full((1, 1, 3), index, np.uint8)

    return convert


def expected(frames: list[float], request: FrameRequest) -> NDArray[np.intp]:
    """Brute force: the last frame before (or at) each time, else the first."""

    def index(time: float) -> int:
        if request.inclusive:
            before = [i for i, ts in enumerate(frames) if ts <= time + TOLERANCE_S]
        else:
            before = [i for i, ts in enumerate(frames) if ts < time - TOLERANCE_S]
        return max(before, default=0)

    return np.vectorize(index, otypes=[np.intp])(request.times_s)


ticks = st.integers(0, 40).map(lambda n: n / 8)


@st.composite
def requests(draw: st.DrawFn) -> FrameRequest:
    units, k = draw(st.integers(0, 5)), draw(st.integers(1, 4))
    times = draw(st.lists(ticks, min_size=units * k, max_size=units * k))
    array = np.array(times, dtype=np.float64).reshape(units, k)
    return FrameRequest(
        draw(st.uuids()).hex, array, View(draw(st.integers(1, 2))), draw(st.booleans())
    )


@settings(max_examples=300, deadline=None)
@given(
    times=st.lists(ticks, min_size=1, max_size=20).map(sorted),
    wanted=st.lists(requests(), max_size=3),
)
def test_every_slot_gets_the_frame_that_a_brute_force_lookup_gives(
    times: list[float], wanted: list[FrameRequest]
) -> None:
    converted: list[tuple[int, View]] = []
    frames = ((time, picture(i, converted)) for i, time in enumerate(times))
    windows = list(serve(frames, wanted))
    for request in wanted:
        own = [window for window in windows if window.request == request.name]
        assert [window.unit for window in own] == list(range(len(request.times_s)))
        indices = expected(times, request)
        for window, row in zip(own, indices, strict=True):
            assert window.frames[:, 0, 0, 0].tolist() == row.tolist()
            assert window.times_s.tolist() == [times[i] for i in row]
    wanted_pairs = {
        (int(i), request.view) for request in wanted for i in expected(times, request).ravel()
    }
    assert len(converted) == len(set(converted))
    assert set(converted) == wanted_pairs


@pytest.mark.parametrize(("inclusive", "frame"), [(False, 0), (True, 1)])
def test_a_frame_exactly_at_the_time_counts_only_if_inclusive(inclusive: bool, frame: int) -> None:
    request = FrameRequest("a", np.array([[0.5]]), View(1), inclusive)
    frames = [(0.0, picture(0)), (0.5 + 1e-9, picture(1)), (1.0, picture(2))]
    (window,) = serve(frames, [request])
    assert window.frames[0, 0, 0, 0] == frame


def test_windows_are_delivered_as_soon_as_their_last_frame_is_known() -> None:
    selection = Selection([FrameRequest("a", np.array([[0.1, 0.9], [1.1, 1.9]]), View(1), True)])
    delivered = [len(list(selection.offer(i * 0.5, picture(i)))) for i in range(5)]
    assert delivered == [0, 0, 1, 0, 1]
    assert selection.done
    assert list(selection.finish()) == []


def test_the_pass_stops_when_everything_is_served() -> None:
    seen: list[int] = []

    def frames() -> Iterator[tuple[float, Picture]]:
        for i in range(100):
            seen.append(i)
            yield i * 0.1, picture(i)

    windows = list(serve(frames(), [FrameRequest("a", np.array([[0.25]]), View(1))]))
    assert len(windows) == 1
    assert seen == [0, 1, 2, 3]


def test_no_frames_give_no_windows() -> None:
    assert list(serve([], [FrameRequest("a", np.array([[0.25]]), View(1))])) == []


@pytest.mark.parametrize(
    "times",
    [np.zeros(3), np.zeros((2, 0)), np.array([[np.nan]])],
    ids=["one axis", "k = 0", "not a number"],
)
def test_malformed_times_are_refused(times: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="times of request 'a' must be finite"):
        Selection([FrameRequest("a", times, View(1))])


def test_two_requests_of_one_name_are_refused() -> None:
    request = FrameRequest("a", np.zeros((1, 1)), View(1))
    with pytest.raises(ValueError, match="different names"):
        Selection([request, request])


def test_frames_are_written_once_into_the_memory_that_the_caller_gives() -> None:
    given: list[NDArray[np.uint8]] = []

    def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        given.append(np.full(shape, 99, np.uint8))
        return given[-1]

    request = FrameRequest("a", np.array([[0.1, 0.9], [1.1, 1.9]]), View(1), True)
    frames = [(i * 0.5, picture(i)) for i in range(5)]
    windows = list(serve(frames, [request], allocate))
    assert [window.frames is array for window, array in zip(windows, given, strict=True)] == [
        True
    ] * 2
    assert [array[:, 0, 0, 0].tolist() for array in given] == [[0, 1], [2, 3]]


def test_a_second_pass_from_the_first_frame_goes_on_where_the_first_one_broke_off() -> None:
    selection = Selection([FrameRequest("a", np.array([[0.3], [0.8], [1.4]]), View(1))])
    frames = [(i * 0.5, picture(i)) for i in range(4)]
    first = list(selection.offer(*frames[0])) + list(selection.offer(*frames[1]))
    assert [window.unit for window in first] == [0]
    rest = list(selection.serve(frames))
    assert [(window.unit, window.frames[0, 0, 0, 0]) for window in rest] == [(1, 1), (2, 2)]
