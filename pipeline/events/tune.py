"""Parameters of `parse` chosen on one split of videos, to be reported on another."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import yaml

from data.config import parse_config
from data.errors import UsageError, some
from data.grid import Grid
from pipeline.events.changepoints import PENALTIES, KernelCpd
from pipeline.events.compare import SECONDS, Figures, Tolerance, compare
from pipeline.events.evaluate import BoundaryScore, Truth
from pipeline.events.parser import parse
from pipeline.events.stored import Clips
from pipeline.stages.events import EventsOptions

__all__ = [
    "Candidate",
    "Space",
    "Tuned",
    "best",
    "score_all",
    "split_truth",
    "tune",
]


@dataclass(frozen=True)
class Candidate:
    """A way to find boundaries that may be chosen.

    Args:
        params: what tells it from others.
        find: boundaries of one video in seconds.
    """

    params: Mapping[str, Any]
    find: Callable[[Clips], Sequence[float]]

    @classmethod
    def parsing(cls, params: Mapping[str, Any]) -> Candidate:
        """`parse` with these keyword arguments."""

        def find(clips: Clips) -> list[float]:
            events = parse(clips.features, clips.clip_len_s, clips.duration_s, **params)
            return [float(time) for time in events.boundaries_s]

        return cls(params, find)


@dataclass(frozen=True)
class Space:
    """The grid that is searched; every method takes what has a meaning for it.

    Args:
        methods: of `parse`.
        half_widths_s: `half_width_s`.
        scales: lists of half widths in seconds that are pooled.
        deltas: `delta_rel`.
        min_lens_s: `min_len_s`.
        settles: `settle`; None leaves the cuts of the recursion as they are.
        penalties: `penalty` of `kts`.
    """

    methods: Sequence[str] = ("rtp", "kts", "oneshot")
    half_widths_s: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0)
    scales: Sequence[tuple[float, ...]] = ((2.0, 4.0, 8.0),)
    deltas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    min_lens_s: Sequence[float] = (2.0, 4.0, 8.0)
    settles: Sequence[float | None] = (None, 1.0)
    penalties: Sequence[float] = (0.25, 0.5, 1.0, 2.0)

    @classmethod
    def of(cls, **given: Sequence[Any] | None) -> Self:
        """The grid with some axes replaced; those that are None or empty stay as they are.

        Widths and scales are one axis: who names some of it gets no others.

        Raises:
            UsageError: an axis that none of the methods has.
        """
        named = {name: tuple(values) for name, values in given.items() if values}
        methods = named.get("methods", cls.methods)
        for name, (option, axis) in _OPTIONS.items():
            if name in named and not any(axis in _AXES.get(each, ()) for each in methods):
                able = ", ".join(method for method, axes in _AXES.items() if axis in axes)
                raise UsageError(
                    f"{option} means nothing to {', '.join(methods)}: leave it out, or add "
                    f"--method; those that read it: {able}"
                )
        widths = {"half_widths_s", "scales"}
        if widths & named.keys():
            named = {**dict.fromkeys(widths, ()), **named}
        space = cls(**named)
        space.candidates()  # refused at once, not when features are there
        return space

    def of_clips(self, clip_len_s: float) -> Self:
        """The grid without half widths that are the same number of clips as another, and so the
        same events: of those the one nearest to that number is kept."""
        nearest: dict[int, float] = {}
        for width in self.half_widths_s:
            clips = Grid(width, clip_len_s).n  # as `parse` rounds
            other = nearest.setdefault(clips, width)
            nearest[clips] = min(other, width, key=lambda each: abs(each - clips * clip_len_s))
        return replace(self, half_widths_s=tuple(nearest.values()))

    def candidates(self) -> list[Candidate]:
        """The grid in the order method, width, delta, length, settle.

        Raises:
            UsageError: an unknown method, a value that the stage would refuse, or no points.
        """
        unknown = [method for method in self.methods if method not in _AXES]
        if unknown:
            raise UsageError(f"method '{unknown[0]}' cannot be tuned; allowed: {', '.join(_AXES)}")
        found = [
            Candidate.parsing({"method": method, **point})
            for method in self.methods
            for point in _points([getattr(self, f"_{axis}")() for axis in _AXES[method]])
        ]
        if not found:
            raise UsageError("there is nothing to choose from: the grid has no points")
        for each in found:
            parse_config(EventsOptions, each.params, source="events tune")
        return found

    def _widths(self) -> list[dict[str, Any]]:
        single: list[dict[str, Any]] = [{"half_width_s": each} for each in self.half_widths_s]
        return single + [{"scales": list(each)} for each in self.scales]

    def _thresholds(self) -> list[dict[str, Any]]:
        return [{"delta_rel": each} for each in self.deltas]

    def _lengths(self) -> list[dict[str, Any]]:
        return [{"min_len_s": each} for each in self.min_lens_s]

    def _prices(self) -> list[dict[str, Any]]:
        return [{} if each is None else {"settle": each} for each in self.settles]

    def _costs(self) -> list[dict[str, Any]]:
        return [{"penalty": each} for each in self.penalties]


_AXES: Mapping[str, tuple[str, ...]] = {
    "rtp": ("widths", "thresholds", "lengths", "prices"),
    "kts": ("costs", "lengths"),
    "oneshot": ("widths",),
    "eatr-compat": (),
}
"""What decides in each method of `parse`; `uniform` does not look at the video."""

_OPTIONS = {
    "half_widths_s": ("--half-width", "widths"),
    "scales": ("--scales", "widths"),
    "deltas": ("--delta", "thresholds"),
    "min_lens_s": ("--min-len", "lengths"),
    "settles": ("--settle", "prices"),
}
"""Of the command line, and the axis that each is on."""


def _points(axes: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    for parts in itertools.product(*axes):
        yield {name: value for part in parts for name, value in part.items()}


def score_all(
    candidates: Sequence[Candidate],
    truth: Mapping[str, Truth],
    clips_of: Callable[[str], Clips],
    objective: Tolerance,
    videos: Iterable[str],
) -> list[BoundaryScore]:
    """Scores of every candidate. Features of one video are held at a time.

    Args:
        candidates: what is tried.
        truth: by video id.
        clips_of: features by video id.
        objective: the tolerance.
        videos: ids of `truth` whose features are there (or an iterator that shows progress).
    """
    totals = [BoundaryScore(0, 0, 0)] * len(candidates)
    for video_id in videos:
        clips, true = clips_of(video_id), {video_id: truth[video_id]}
        for index, candidate in enumerate(candidates):
            totals[index] += objective.score({video_id: candidate.find(clips)}, true)
    return totals


def best(
    candidates: Sequence[Candidate], scores: Sequence[BoundaryScore]
) -> tuple[Candidate, BoundaryScore]:
    """The candidate of the best F1; of equals the first."""
    at = max(range(len(candidates)), key=lambda index: scores[index].f1)
    return candidates[at], scores[at]


def split_truth(
    truth: Mapping[str, Truth], test: Mapping[str, Truth] | None, share: float = 0.5
) -> tuple[dict[str, Truth], dict[str, Truth]]:
    """Videos to choose on, and others to report on.

    Args:
        truth: by video id.
        test: the others if they are given; else part of `truth`, by a hash of the id.
        share: of `truth` that is kept for the report, where `test` is not given.

    Raises:
        UsageError: a video is in both, or one side is empty.
    """
    if test is None:
        kept = {each for each in truth if _position(each) < share}
        test = {each: truth[each] for each in truth if each in kept}
        truth = {each: truth[each] for each in truth if each not in kept}
    shared = sorted(set(truth) & set(test))
    if shared:
        raise UsageError(
            f"{len(shared)} videos are in both splits ({some(shared)}): figures on videos that "
            "parameters were chosen on say nothing; take them out of one file"
        )
    if not truth or not test:
        raise UsageError(
            f"{len(truth)} videos to choose on and {len(test)} to report on: both must have some; "
            "give more videos, another share, or a test file"
        )
    return dict(truth), dict(test)


def _position(video_id: str) -> float:
    """Evenly spread over `[0, 1)`, the same on every machine."""
    return int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:6], "big") / (1 << 48)


CHOSEN, KERNEL_CPD = "events, chosen", "KernelCPD, penalty chosen"


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Args:
        params: chosen arguments of `parse`.
        objective: whose F1 was raised.
        tried: number of candidates.
        learned: videos that they were chosen on.
        held: other videos, that `rows` are of.
        learn: F1 at `objective` on the first ones, by name, of what was chosen there.
        rows: figures on the others, by name.
        notes: what is to be known of them.
    """

    params: Mapping[str, Any]
    objective: Tolerance
    tried: int
    learned: int
    held: int
    learn: Mapping[str, float]
    rows: Mapping[str, Figures]
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the figures of `rows` are left to the caller."""
        return {
            "params": dict(self.params),
            "objective": str(self.objective),
            "tried": self.tried,
            "learned": self.learned,
            "held": self.held,
            "learn_f1": dict(self.learn),
        }

    def yaml(self, truth: str, streams: Mapping[str, float]) -> str:
        """The section of a pipeline.yaml, with where its numbers come from."""
        here, there = self.learn[CHOSEN], self.rows[CHOSEN].scores[self.objective].f1
        # Every option, lest one of a config that this one extends be taken with the chosen ones.
        section = {"streams": dict(streams), **EventsOptions().parameters, **self.params}
        return (
            f"# Chosen by `pipeline events tune` among {self.tried} on {self.learned} videos of\n"
            f"# {json.dumps(truth)}: F1@{self.objective} {here:.3f} there, {there:.3f} on "
            f"{self.held} others.\n"
        ) + yaml.safe_dump({"stages": {"events": section}}, sort_keys=False)


Progress = Callable[[Sequence[str], str], Iterable[str]]
"""Gives the videos of a sequence back one by one, and shows how far it is."""


def tune(
    learn: Mapping[str, Truth],
    held: Mapping[str, Truth],
    clips_of: Callable[[str], Clips],
    space: Space,
    objective: Tolerance,
    *,
    before: Mapping[str, Any] | None = None,
    cpd: bool = True,
    seconds: Sequence[Tolerance] = SECONDS,
    seed: int = 0,
    progress: Progress = lambda videos, what: videos,
) -> Tuned:
    """Choose on `learn`, report on `held`.

    Args:
        learn: videos to choose on; all have features.
        held: other videos.
        clips_of: features by video id.
        space: what is tried.
        objective: whose F1 counts.
        before: arguments of `parse` to compare with; {} its defaults; None: nothing.
        cpd: compare with KernelCPD, its penalty chosen the same way.
        seconds: tolerances of the report beside those of the challenge.
        seed: of the random baseline.
        progress: shows how far it is.
    """
    clip_len_s = clips_of(min(learn)).clip_len_s  # one of the store
    space = space.of_clips(clip_len_s)
    grid = {CHOSEN: space.candidates()}
    if before is not None:
        grid["events, as stored" if before else "events, defaults"] = [Candidate.parsing(before)]
    if cpd:
        grid[KERNEL_CPD] = [Candidate({"penalty": p}, KernelCpd(penalty=p)) for p in PENALTIES]
    every = [candidate for group in grid.values() for candidate in group]
    scores = iter(score_all(every, learn, clips_of, objective, progress(sorted(learn), "choosing")))
    won = {name: best(group, [next(scores) for _ in group]) for name, group in grid.items()}
    found: dict[str, dict[str, Sequence[float]]] = {name: {} for name in won}
    for video_id in progress(sorted(held), "reporting"):
        clips = clips_of(video_id)
        for name, (candidate, _) in won.items():
            found[name][video_id] = candidate.find(clips)
    return Tuned(
        params=won[CHOSEN][0].params,
        objective=objective,
        tried=len(grid[CHOSEN]),
        learned=len(learn),
        held=len(held),
        learn={name: score.f1 for name, (_, score) in won.items()},
        rows=compare(found, held, seconds=dict.fromkeys((*seconds, objective)), seed=seed),
        notes=_edges(space, won[CHOSEN][0].params, clip_len_s),
    )


def _edges(space: Space, params: Mapping[str, Any], clip_len_s: float) -> list[str]:
    """Chosen values at the end of what was tried: better ones may lie beyond, unless it is time
    of no more than one clip."""
    tried = {
        "half_width_s": space.half_widths_s,
        "delta_rel": space.deltas,
        "min_len_s": space.min_lens_s,
        "settle": [each for each in space.settles if each is not None],
        "penalty": space.penalties,
    }
    return [
        f"{name} {params[name]:g} is the last of those tried ({min(values):g} to {max(values):g}): "
        "a better one may lie beyond"
        for name, values in tried.items()
        if name in params
        and len(values) > 1
        and params[name] in (min(values), max(values))
        and not (name.endswith("_s") and params[name] <= clip_len_s)
    ]
