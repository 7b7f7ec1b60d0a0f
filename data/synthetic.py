"""A small corpus of real H.264 files whose truth is known: coloured shapes in scripted scenes.

    render_corpus(Path("corpus"))       # 220 videos of 24 s, 440 queries

The same parameters and seed give the same bytes with the same FFmpeg on the same kind of CPU.

    corpus/videos/<id>.mp4                      the films
    corpus/annotations/{train,val,test}.jsonl   queries in the row format of QVHighlights, whose
                                                clips are `clip_len_s` of dataset.json long
    corpus/annotations/dataset.json             name, clip_len_s, splits
    corpus/boundaries.jsonl                     true scene cuts: vid, duration, boundaries (seconds)
    corpus/corpus.json                          parameters, counts, sha256 of every file; comes last

A film is cut into scenes of whole clips. A scene has a background tone and one or two shapes, each
with a colour and a motion that repeats while the scene lasts. A query describes one of them ("a
red circle moves to the right"); its moments are all scenes of the film where that is seen. Some
films show the same thing twice (two windows), some show the same shape with another motion.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError
from data.identity import digest, file_sha256

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "Actor",
    "CorpusSpec",
    "Scene",
    "Script",
    "render_corpus",
    "write_script",
]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 220, 50),
    "purple": (150, 60, 200),
    "cyan": (60, 210, 220),
}
"""RGB of the shapes, before H.264 moves them a little."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (16, 16, 20),
    "dark grey": (40, 40, 44),
    "navy": (20, 30, 60),
    "brown": (45, 35, 28),
}
"""RGB of the background tones; neighbouring scenes have different ones. All are dark: brightness
rules the features of random networks, and with light tones beside dark ones the shapes were lost
in a trial (no learning in 40 epochs of QD-DETR)."""

MOTIONS: dict[str, str] = {
    "still": "stays still",
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "appear": "appears",
}
"""Motions and how a query says them."""

_SPEED = 0.4
"""Widths of the picture that a moving shape travels in a second: visible within one clip."""

_GROWTH_S = 2.0
"""Seconds of one growth from small to full size, which then repeats."""

_HIDDEN = 0.375
"""Part of every second for which a shape that appears is away."""

_P_SCENES = (0, 0, 0, 0.15, 0.25, 0.3, 0.3)
"""Probability of 0, 1, 2, ... scenes. Few long scenes would let a guess without looking hit."""

_P_SECOND_SHAPE = 0.25
_P_SAME_AGAIN = 0.4
_P_OTHER_MOTION = 0.12

_X264 = "rc-lookahead=0:mbtree=0:weightp=0"
"""Look-ahead of x264 gave other bytes in 2 of 8 films of 64 x 48 when they were encoded eight times
in one process; without it, and on one thread, the bytes are the same every time."""

Offsets = NDArray[np.float32]


SHAPES: dict[str, Callable[[Offsets, Offsets], NDArray[np.bool_]]] = {
    "circle": lambda dx, dy: dx**2 + dy**2 <= 1,
    "square": lambda dx, dy: np.maximum(np.abs(dx), np.abs(dy)) <= 0.85,
    "triangle": lambda dx, dy: (dy <= 0.75) & (np.abs(dx) <= (dy + 1) * 0.55),
    "cross": lambda dx, dy: (
        (np.minimum(np.abs(dx), np.abs(dy)) <= 0.33) & (np.maximum(np.abs(dx), np.abs(dy)) <= 1)
    ),
}
"""Shapes as inside-tests over offsets from the centre in radii (y grows downwards)."""


@dataclass(frozen=True)
class Actor:
    """One shape of a scene; lengths are in widths of the picture.

    Args:
        colour, shape, motion: keys of `COLOURS`, `SHAPES`, `MOTIONS`.
        x, y: centre at the start of the scene.
        radius: its size.
    """

    colour: str
    shape: str
    motion: str
    x: float
    y: float
    radius: float

    @property
    def description(self) -> str:
        """What a query about it says."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape} {MOTIONS[self.motion]}"


@dataclass(frozen=True)
class Scene:
    """`clips` clips from clip `start` with the same background and actors."""

    start: int
    clips: int
    background: str
    actors: tuple[Actor, ...]


@dataclass(frozen=True)
class Script:
    """All that happens in one film."""

    video_id: str
    scenes: tuple[Scene, ...]

    def moments(self) -> dict[str, list[tuple[int, int]]]:
        """Descriptions and the `[first, end)` clips where each is seen."""
        found: dict[str, list[tuple[int, int]]] = {}
        for scene in self.scenes:
            for actor in scene.actors:
                span = scene.start, scene.start + scene.clips
                found.setdefault(actor.description, []).append(span)
        return found


@dataclass(frozen=True)
class CorpusSpec:
    """Parameters of a corpus; see `render_corpus`."""

    train: int
    val: int
    test: int
    seed: int
    clips: int
    clip_len_s: float
    fps: int
    size: tuple[int, int]
    queries_per_video: int

    @property
    def splits(self) -> dict[str, int]:
        """Videos per split."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def check(self) -> None:
        """UsageError for parameters that no film can be made of."""
        frames = self.clip_len_s * self.fps
        if self.clips < 2 or frames < 1 or frames != int(frames):
            raise UsageError(
                f"a film needs >= 2 clips of a whole number of frames, got {self.clips} clips of "
                f"{self.clip_len_s} s at {self.fps} fps; change clips, clip_len_s or fps"
            )
        if min(self.size) < 32 or self.size[0] % 2 or self.size[1] % 2:
            raise UsageError(f"size must be even and >= 32 x 32 pixels, got {self.size}")
        if min(self.splits.values()) < 0 or self.queries_per_video < 1:
            raise UsageError(
                f"splits must be >= 0 videos and queries_per_video >= 1, got {self.splits} and "
                f"{self.queries_per_video}"
            )


def render_corpus(
    folder: Path,
    *,
    train: int = 160,
    val: int = 40,
    test: int = 20,
    seed: int = 0,
    clips: int = 24,
    clip_len_s: float = 1.0,
    fps: int = 8,
    size: tuple[int, int] = (96, 96),
    queries_per_video: int = 4,
    workers: int = 1,
) -> None:
    """Write a corpus into `folder`, which must not hold one already.

    Args:
        folder: is created.
        train, val, test: videos per split.
        seed: other seeds tell other films.
        clips: clips per video.
        clip_len_s: seconds per clip.
        fps: frames per second.
        size: width and height in pixels.
        queries_per_video: fewer where a film does not show as many different things.
        workers: processes that encode.
    """
    spec = CorpusSpec(train, val, test, seed, clips, clip_len_s, fps, size, queries_per_video)
    spec.check()
    if (folder / "corpus.json").exists():
        raise UsageError(f"{folder} already holds a corpus; give another folder or delete it")
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    scripts = _scripts(spec)
    everything = [script for split in scripts.values() for script in split]
    hashes = _encode_all(folder / "videos", everything, spec, workers)
    queries = _write_annotations(folder, scripts, spec)
    facts = {
        "parameters": asdict(spec),
        "videos": spec.splits,
        "queries": queries,
        "sha256": _hashes(folder, hashes),
    }
    _write_json(folder / "corpus.json", {**facts, "digest": digest(facts["sha256"])})


def write_script(seed: Sequence[int], video_id: str, clips: int) -> Script:
    """The film that a seed tells: 3 to 6 scenes (fewer if there are few clips)."""
    rng = np.random.default_rng(seed)
    lengths = _scene_lengths(rng, clips)
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    leads = _leads(rng, len(lengths))
    scenes: list[Scene] = []
    for start, length, lead in zip(starts, lengths, leads, strict=True):
        before = scenes[-1] if scenes else None
        tones = [tone for tone in BACKGROUNDS if before is None or tone != before.background]
        actors = [lead]
        if rng.random() < _P_SECOND_SHAPE:
            others = [*leads, *(before.actors if before else ())]
            actors.append(_second(rng, lead, others))
        scenes.append(Scene(start, length, tones[rng.integers(len(tones))], tuple(actors)))
    return Script(video_id, tuple(scenes))


def _scene_lengths(rng: np.random.Generator, clips: int) -> list[int]:
    """Scenes of at least two clips, all divisions of the rest equally likely."""
    scenes = min(int(rng.choice(len(_P_SCENES), p=_P_SCENES)), clips // 2)
    spare = clips - 2 * scenes
    bars = np.sort(rng.choice(spare + scenes - 1, scenes - 1, replace=False))
    edges = np.concatenate([[-1], bars, [spare + scenes - 1]])
    return [int(gap) + 1 for gap in np.diff(edges)]


def _leads(rng: np.random.Generator, scenes: int) -> list[Actor]:
    """The main actor of each scene, in different colours; sometimes one comes back later."""
    colours = rng.permutation(list(COLOURS)).tolist()
    leads = [_actor(rng, colours[index], lead=True) for index in range(scenes)]
    chance = rng.random()
    if scenes >= 3 and chance < _P_SAME_AGAIN + _P_OTHER_MOTION:
        first = int(rng.integers(scenes - 2))
        later = int(rng.integers(first + 2, scenes))
        old = leads[first]
        motion = old.motion
        if chance >= _P_SAME_AGAIN:
            motion = str(rng.choice([name for name in MOTIONS if name != old.motion]))
        leads[later] = _actor(rng, old.colour, lead=True, shape=old.shape, motion=motion)
    return leads


def _second(rng: np.random.Generator, lead: Actor, others: Sequence[Actor]) -> Actor:
    """A smaller actor beside `lead` that looks like none of `others`."""
    taken = {(each.colour, each.shape) for each in others}
    while True:
        colour = str(rng.choice([name for name in COLOURS if name != lead.colour]))
        actor = _actor(rng, colour, lead=False)
        if (actor.colour, actor.shape) not in taken:
            return actor


def _actor(
    rng: np.random.Generator,
    colour: str,
    *,
    lead: bool,
    shape: str | None = None,
    motion: str | None = None,
) -> Actor:
    """An actor at a random place; leads stand upper left of the second actors."""
    low, high = (0.35, 0.5) if lead else (0.72, 0.84)
    x, y = rng.uniform(low, high, 2).round(3).tolist()
    radius = 0.26 if lead else 0.12
    shape = shape or str(rng.choice(list(SHAPES)))
    motion = motion or str(rng.choice(list(MOTIONS)))
    return Actor(colour, shape, motion, x, y, radius)


def _scripts(spec: CorpusSpec) -> dict[str, list[Script]]:
    """Scripts per split. A script that was already told is told again from another seed."""
    told: set[tuple[Scene, ...]] = set()
    splits: dict[str, list[Script]] = {}
    for number, (split, count) in enumerate(spec.splits.items()):
        splits[split] = []
        for index in range(count):
            attempt = 0
            script = write_script((spec.seed, number, index), f"{split}-{index:04d}", spec.clips)
            while script.scenes in told:
                attempt += 1
                seed = (spec.seed, number, index, attempt)
                script = write_script(seed, script.video_id, spec.clips)
            told.add(script.scenes)
            splits[split].append(script)
    return splits


def _frames(scene: Scene, spec: CorpusSpec) -> Iterator[NDArray[np.uint8]]:
    """Pictures of a scene, shape (H, W, 3); the same object again where nothing moves."""
    width, height = spec.size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    still = all(actor.motion == "still" for actor in scene.actors)
    picture: NDArray[np.uint8] | None = None
    for index in range(int(scene.clips * spec.clip_len_s * spec.fps)):
        if picture is None or not still:
            picture = np.empty((height, width, 3), np.uint8)
            picture[:] = BACKGROUNDS[scene.background]
            for actor in scene.actors:
                _draw(picture, actor, index / spec.fps, rows / height, columns / width)
        yield picture


def _draw(
    picture: NDArray[np.uint8], actor: Actor, time_s: float, rows: Offsets, columns: Offsets
) -> None:
    x, y, radius = actor.x, actor.y, actor.radius
    # A shape that leaves the picture comes back on the other side.
    along = (time_s * _SPEED, 1 + 2 * radius)
    if actor.motion in {"left", "right"}:
        sign = 1 if actor.motion == "right" else -1
        x = (x + radius + sign * along[0]) % along[1] - radius
    elif actor.motion in {"up", "down"}:
        sign = 1 if actor.motion == "down" else -1
        y = (y + radius + sign * along[0]) % along[1] - radius
    elif actor.motion == "grow":
        radius *= 0.35 + 0.85 * (time_s % _GROWTH_S) / _GROWTH_S
    elif actor.motion == "appear" and time_s % 1.0 < _HIDDEN:
        return
    inside = SHAPES[actor.shape]((columns - x) / radius, (rows - y) / radius)
    picture[inside] = COLOURS[actor.colour]


def _encode_all(
    folder: Path, scripts: Sequence[Script], spec: CorpusSpec, workers: int
) -> dict[str, str]:
    """sha256 of every film, by id."""
    encode = partial(_encode, folder, spec=spec)
    if workers <= 1:
        hashes = [encode(script) for script in scripts]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            hashes = list(pool.map(encode, scripts, chunksize=4))
    if len(set(hashes)) < len(hashes):
        raise RuntimeError("two films have the same bytes although their scripts differ")
    return {script.video_id: sha for script, sha in zip(scripts, hashes, strict=True)}


def _encode(folder: Path, script: Script, *, spec: CorpusSpec) -> str:
    """Write one film; returns its sha256."""
    import av

    path = folder / f"{script.video_id}.mp4"
    with _quiet(), av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as film:
        options = {"preset": "veryfast", "crf": "20", "flags": "+bitexact", "threads": "1"}
        options["x264-params"] = _X264
        stream = film.add_stream("libx264", rate=spec.fps, options=options)
        stream.width, stream.height = spec.size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 4 * spec.fps
        pictures = (picture for scene in script.scenes for picture in _frames(scene, spec))
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, spec.fps)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return file_sha256(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without x264's statistics on standard error."""
    import av

    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        yield
    finally:
        av.logging.set_level(level)


def _write_annotations(
    folder: Path, scripts: dict[str, list[Script]], spec: CorpusSpec
) -> dict[str, int]:
    """Write queries, boundaries and dataset.json; returns the queries per split."""
    counts, qid = {}, 0
    for split, films in scripts.items():
        rows = [row for film in films for row in _queries(film, spec)]
        for row in rows:
            row["qid"] = qid
            qid += 1
        _write_jsonl(folder / "annotations" / f"{split}.jsonl", rows)
        counts[split] = len(rows)
    cuts = [_boundaries(film, spec) for films in scripts.values() for film in films]
    _write_jsonl(folder / "boundaries.jsonl", cuts)
    dataset = {"name": "synthetic", "clip_len_s": spec.clip_len_s, "splits": list(scripts)}
    _write_json(folder / "annotations" / "dataset.json", dataset)
    return counts


def _queries(script: Script, spec: CorpusSpec) -> list[dict[str, Any]]:
    """Rows of the queries about one film; `qid` is given later."""
    rng = np.random.default_rng([*script.video_id.encode(), spec.seed])
    moments = script.moments()
    count = min(spec.queries_per_video, len(moments))
    texts = sorted(rng.choice(sorted(moments), count, replace=False).tolist())
    return [_query(rng, script.video_id, text, moments[text], spec) for text in texts]


def _query(
    rng: np.random.Generator,
    video_id: str,
    text: str,
    spans: Sequence[tuple[int, int]],
    spec: CorpusSpec,
) -> dict[str, Any]:
    return {
        "qid": -1,
        "query": text,
        "duration": spec.clips * spec.clip_len_s,
        "vid": video_id,
        "relevant_windows": [[a * spec.clip_len_s, b * spec.clip_len_s] for a, b in spans],
        "relevant_clip_ids": [clip for a, b in spans for clip in range(a, b)],
        "saliency_scores": [scores for a, b in spans for scores in _saliency(rng, b - a)],
    }


def _saliency(rng: np.random.Generator, clips: int) -> list[list[int]]:
    """Three annotators' scores 0..4 per clip: highest in the middle of the moment, with noise."""
    centre = 1 - np.abs((np.arange(clips) + 0.5) / clips * 2 - 1)
    truth = 2.4 + 1.8 * centre[:, None]
    noise = rng.choice([-1, 0, 1], size=(clips, 3), p=[0.15, 0.7, 0.15])
    scores: list[list[int]] = np.clip(np.round(truth) + noise, 0, 4).astype(int).tolist()
    return scores


def _boundaries(script: Script, spec: CorpusSpec) -> dict[str, Any]:
    return {
        "vid": script.video_id,
        "duration": spec.clips * spec.clip_len_s,
        "boundaries": [scene.start * spec.clip_len_s for scene in script.scenes[1:]],
    }


def _hashes(folder: Path, films: dict[str, str]) -> dict[str, str]:
    """sha256 of every file of the corpus, by path."""
    texts = [*sorted((folder / "annotations").iterdir()), folder / "boundaries.jsonl"]
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in texts}
    return {**hashes, **{f"videos/{name}.mp4": sha for name, sha in films.items()}}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
