"""Do pseudo-events find the scene cuts, and better than what else one could use?

Films made of clip features (data/synthetic_features.py: clean, noisy, drifting, gradual cuts,
recurring scenes, 40 to 600 clips), and with `--films` also rendered H.264 films (data/synthetic.py)
whose features the tiny CLIP of the pipeline makes. Each set has a tune split and a test split of
other seeds. Every method takes its best setting of each set's tune split, the comparators as much
as ours; `one setting` is ours again with one setting for all sets of features. Printed are F1 on
the test split within 5 % of the duration, and which settings were taken.

    OMP_NUM_THREADS=1 python benchmarks/events_accuracy.py --check
    OMP_NUM_THREADS=1 python benchmarks/events_accuracy.py --films --check
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ruptures
import yaml
from harness import Benchmark
from numpy.typing import NDArray

from data.store import Store
from data.synthetic import render_corpus
from data.synthetic_features import SETS, FilmKind, feature_films
from pipeline.events.evaluate import BoundaryScore, Truth, boundary_score, read_truth
from pipeline.events.parser import parse

TOLERANCE = 0.05
TUNE_SEED, TEST_SEED = 11, 12


@dataclass(frozen=True)
class Film:
    """Features of clips of `clip_len_s`, and the true boundaries."""

    features: NDArray[Any]
    clip_len_s: float
    truth: Truth


Films = Sequence[Film]
Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A detector, `find(film, setting) -> seconds`, and the settings that are tried."""

    find: Callable[[Film, Setting], Iterable[float]]
    settings: Sequence[Setting]


def main() -> None:
    """Tune, test and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tune", type=int, default=40, help="films of each tune split")
    parser.add_argument("--test", type=int, default=200, help="films of each test split")
    parser.add_argument("--films", action="store_true", help="rendered films as well")
    bench = Benchmark("Do pseudo-events find the scene cuts? F1 within 5 % of the film", parser)
    sets = {name: _split(kind, bench.args) for name, kind in SETS.items()}
    tuned = {name: _compare(bench, name, *films, at_least=0.93) for name, films in sets.items()}
    one = best(RTP, list(tuned.values()))
    print(f"rtp, one setting: {dict(one)}", file=sys.stderr)
    for name, (_, test) in sets.items():
        bench.figure(f"rtp, one setting: {name}", score(RTP, one, test).f1, at_least=0.93)
    if bench.args.films:
        with tempfile.TemporaryDirectory() as scratch:
            tune, test = rendered(Path(scratch), bench.args.tune, bench.args.test)
        _compare(bench, "rendered", tune, test)
    bench.finish()


def _split(kind: FilmKind, args: argparse.Namespace) -> tuple[Films, Films]:
    return made_up(kind, args.tune, TUNE_SEED), made_up(kind, args.test, TEST_SEED)


def _compare(
    bench: Benchmark, name: str, tune: Films, test: Films, at_least: float | None = None
) -> list[float]:
    """One set: every method with its best setting of `tune`, scored on `test`.

    Returns the F1 of each setting of `rtp` on `tune`.
    """
    results: dict[str, BoundaryScore] = {}
    ours: list[float] = []
    for title, method in METHODS.items():
        tuned = [score(method, setting, tune).f1 for setting in method.settings]
        setting = best(method, [tuned])
        results[title] = score(method, setting, test)
        ours = tuned if method is RTP else ours
        f1 = results[title].f1
        print(f"{name}, {title}: {f1:.4f} with {dict(setting)}", file=sys.stderr, flush=True)
    for title, result in results.items():
        target = at_least if title == "rtp" else None
        bench.figure(f"{name}: {title}", result.f1, at_least=target)
    bench.figure(f"{name}: predicted / true boundaries of rtp", results["rtp"].ratio)
    rival = max(each.f1 for title, each in results.items() if title != "rtp")
    bench.figure(f"{name}: rtp above the best other", results["rtp"].f1 - rival, at_least=0)
    return ours


# ---------------------------------------------------------------- films


def made_up(kind: FilmKind, count: int, seed: int) -> Films:
    """Films of features, one second per clip."""
    return [
        Film(film.features, 1.0, Truth(float(len(film.features)), (tuple(map(float, film.cuts)),)))
        for film in feature_films(kind, count, seed)
    ]


def rendered(scratch: Path, tune: int, test: int) -> tuple[Films, Films]:
    """Films that are encoded, decoded and put through the tiny CLIP by the pipeline itself."""
    corpus = scratch / "corpus"
    render_corpus(corpus, train=tune, val=0, test=test, seed=TEST_SEED)
    job = {
        "extends": "tiny",
        "clip_len_s": 1.0,
        "videos": {"root": str(corpus / "videos")},
        "store": str(scratch / "store"),
    }
    config = scratch / "pipeline.yaml"
    config.write_text(yaml.safe_dump(job))
    pipeline = str(Path(sys.executable).with_name("pipeline"))
    subprocess.run(
        [pipeline, "run", "--config", str(config), "--stage", "clip", "--executor", "inline"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    reader = Store.open(scratch / "store").reader("clip")
    truth = read_truth(corpus / "boundaries.jsonl")
    films: dict[bool, list[Film]] = {True: [], False: []}
    for video in sorted(truth):
        features = reader.array(video, "clip").astype(np.float32)
        films[video.startswith("train")].append(Film(features, 1.0, truth[video]))
    return films[True], films[False]


# ---------------------------------------------------------------- methods


def score(method: Method, setting: Setting, films: Films) -> BoundaryScore:
    """Of all films together (micro)."""
    found = {str(i): list(method.find(film, setting)) for i, film in enumerate(films)}
    truth = {str(i): film.truth for i, film in enumerate(films)}
    return boundary_score(found, truth, tolerance=TOLERANCE, relative=True)


def best(method: Method, tuned: Sequence[Sequence[float]]) -> Setting:
    """The setting of the highest mean over sets, each given as one F1 per setting; of equals the
    first."""
    return method.settings[int(np.mean(tuned, axis=0).argmax())]


def grid(**options: Sequence[Any]) -> list[Setting]:
    """All combinations."""
    return [
        dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())
    ]


def by_parse(film: Film, setting: Setting) -> Iterable[float]:
    """`pipeline.events.parser.parse`."""
    found = parse(film.features, film.clip_len_s, film.truth.duration_s, **setting)
    times: list[float] = found.boundaries_s.tolist()
    return times


def by_grid(film: Film, setting: Setting) -> Iterable[float]:
    """Equal spans, as many as on average in the tune split if that is the best number."""
    count = setting["boundaries"]
    return [film.truth.duration_s * i / (count + 1) for i in range(1, count + 1)]


def by_kernel_cpd(film: Film, setting: Setting) -> Iterable[float]:
    """Exact kernel change points (ruptures; Arlot 2019) of unit features with a penalty."""
    unit = film.features / np.linalg.norm(film.features, axis=1, keepdims=True)
    search = ruptures.KernelCPD(kernel=setting["kernel"], min_size=setting["min_size"]).fit(unit)
    growth = np.log(len(unit)) if setting["penalty_grows"] else 1.0
    ends = search.predict(pen=setting["penalty"] * growth)
    return [end * film.clip_len_s for end in ends[:-1]]


RTP = Method(
    by_parse,
    grid(
        half_width_s=(1, 2, 3, 4, 5, 6, 8),
        delta_rel=(0.2, 0.3, 0.4, 0.5),
        min_len_s=(2, 6),
        taper=("box", "gaussian"),
    )
    + grid(
        half_width_s=(2, 4, 8),
        delta_rel=(0.1, 0.2, 0.4),
        min_len_s=(1, 2),
        taper=("box", "gaussian"),
        settle=(0.3, 0.5, 0.7, 1.0, 1.4, 2.0),
    ),
)

METHODS: Mapping[str, Method] = {
    "rtp": RTP,
    "one-shot": Method(
        by_parse,
        grid(
            method=["oneshot"], half_width_s=(1, 2, 3, 4, 5, 6, 8), edges=("margin", "normalized")
        ),
    ),
    "uniform grid": Method(by_grid, grid(boundaries=range(1, 16))),
    "KernelCPD": Method(
        by_kernel_cpd,
        grid(
            kernel=("linear", "rbf"),
            min_size=(1, 2),
            penalty=np.geomspace(0.02, 20, 19).round(3).tolist(),
            penalty_grows=(False, True),
        ),
    ),
}


if __name__ == "__main__":
    main()
