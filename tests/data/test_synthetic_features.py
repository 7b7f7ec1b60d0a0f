"""Made-up films of features have the cuts that they say, and the hardships of their set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.synthetic_features import SETS, FilmKind, feature_films

PLAIN = FilmKind(noise=0.0, drift=0.0)


@pytest.mark.parametrize("name", SETS)
def test_films_of_every_set_have_the_lengths_and_scenes_that_it_says(name: str) -> None:
    kind = SETS[name]
    for film in feature_films(kind, 30, seed=0):
        length = len(film.features)
        assert film.features.dtype == np.float32
        assert kind.clips[0] <= length <= kind.clips[1]
        assert np.isfinite(film.features).all()
        scenes = np.diff([0, *film.cuts, length])
        assert kind.scenes[0] <= len(scenes) <= kind.scenes[1]
        assert scenes.min() >= kind.shortest_scene


def test_without_noise_and_drift_features_change_at_the_cuts_alone() -> None:
    for film in feature_films(PLAIN, 20, seed=0):
        changes = np.flatnonzero(np.abs(np.diff(film.features, axis=0)).max(axis=1) > 1e-6) + 1
        assert tuple(changes.tolist()) == film.cuts


def test_a_fade_is_centred_on_its_cut_and_as_long_as_it_says() -> None:
    for film in feature_films(replace(PLAIN, scenes=(2, 2), fade=4), 20, seed=0):
        changes = np.flatnonzero(np.abs(np.diff(film.features, axis=0)).max(axis=1) > 1e-6) + 1
        cut = film.cuts[0]
        assert changes.min() == cut - 4
        assert changes.max() == cut + 4
        np.testing.assert_allclose(
            film.features[cut - 1] + film.features[cut],
            film.features[0] + film.features[-1],
            atol=1e-5,
        )


def test_scenes_come_again_as_often_as_asked_and_never_next_to_each_other() -> None:
    def repeats(recurring: float) -> int:
        count = 0
        kind = replace(PLAIN, scenes=(8, 8), recurring=recurring)
        for film in feature_films(kind, 50, seed=0):
            shown = [film.features[start] for start in (0, *film.cuts)]
            rows = np.round(np.stack(shown), 4)
            assert (np.abs(np.diff(rows, axis=0)).max(axis=1) > 1e-3).all()
            count += len(rows) - len(np.unique(rows, axis=0))
        return count

    assert repeats(0.0) == 0
    # 6 of 8 scenes have something to come back to: 300 chances in 50 films.
    assert 0.2 * 300 < repeats(0.3) < 0.4 * 300


def test_drift_is_slow_and_noise_is_not() -> None:
    def correlation(kind: FilmKind) -> float:
        # within the one scene, neighbours' departures from its mean
        values = []
        for film in feature_films(replace(kind, scenes=(1, 1), clips=(400, 400)), 5, seed=0):
            rows = film.features - film.features.mean(axis=0)
            values.append(float((rows[1:] * rows[:-1]).sum() / (rows**2).sum()))
        return float(np.mean(values))

    assert correlation(replace(PLAIN, drift=1.0)) == pytest.approx(0.9, abs=0.05)
    assert correlation(replace(PLAIN, noise=1.0)) == pytest.approx(0.0, abs=0.05)


def test_a_film_depends_on_its_seed_and_number_alone() -> None:
    few = list(feature_films(PLAIN, 3, seed=5))
    many = list(feature_films(PLAIN, 6, seed=5))
    other = list(feature_films(PLAIN, 3, seed=6))
    for one, same, different in zip(few, many, other, strict=False):
        np.testing.assert_array_equal(one.features, same.features)
        assert one.cuts == same.cuts
        assert not np.array_equal(one.features, different.features)
