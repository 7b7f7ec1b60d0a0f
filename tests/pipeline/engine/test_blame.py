"""Whose fault a death was."""

from __future__ import annotations

from pipeline.engine.blame import Blame
from pipeline.engine.limits import ATTEMPTS, Limits
from pipeline.engine.types import Unit

POISON: Unit = ("clip", "poison", 0)
INNOCENT: Unit = ("clip", "innocent", 0)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def deaths_until_given_up(blame: Blame, unit: Unit, cause: str) -> int:
    count = 1
    while not blame.count(unit, cause):
        count += 1
    return count


def test_each_cause_has_a_limit_of_its_own() -> None:
    for cause, limit in ATTEMPTS.items():
        if cause != "node-lost":
            assert deaths_until_given_up(Blame(Limits()), POISON, cause) == limit
    assert deaths_until_given_up(Blame(Limits({"crash": 7})), POISON, "crash") == 7
    assert deaths_until_given_up(Blame(Limits({"decoder": 1})), POISON, "decoder-timeout") == 1


def test_causes_are_counted_apart() -> None:
    blame = Blame(Limits())
    assert not any(blame.count(INNOCENT, cause) for cause in ("crash", "killed", "exception"))
    assert blame.attempts(INNOCENT) == 3
    assert blame.attempts(POISON) == 0


def test_an_input_that_is_done_shows_that_its_deaths_were_random_and_excuses_others() -> None:
    blame = Blame(Limits(), Clock())
    blame.count(INNOCENT, "killed")
    blame.done(INNOCENT)
    assert not any(blame.count(POISON, "killed") for _ in range(ATTEMPTS["killed"]))
    assert not blame.is_suspect(INNOCENT)


def test_a_death_with_no_input_in_hand_excuses_for_a_while() -> None:
    clock = Clock()
    blame = Blame(Limits(storm_s=60), clock)
    blame.random_death()
    blame.count(POISON, "killed")
    clock.now += 61
    assert deaths_until_given_up(blame, POISON, "killed") == ATTEMPTS["killed"]


def test_crashes_are_never_excused() -> None:
    blame = Blame(Limits(), Clock())
    blame.random_death()
    assert deaths_until_given_up(blame, POISON, "crash") == ATTEMPTS["crash"]


def test_an_endless_storm_does_not_make_an_endless_run() -> None:
    blame = Blame(Limits(), Clock())
    blame.random_death()
    assert deaths_until_given_up(blame, POISON, "killed") == 3 * ATTEMPTS["killed"]


def test_poison_inputs_do_not_excuse_each_other() -> None:
    blame = Blame(Limits(), Clock())
    for _ in range(ATTEMPTS["killed"] - 1):
        assert not blame.count(POISON, "killed")
        assert not blame.count(INNOCENT, "killed")
    assert blame.count(POISON, "killed")
    assert blame.count(INNOCENT, "killed")


def test_rests_grow_and_end() -> None:
    limits = Limits(rest_s=0.5)
    assert [limits.rest_after(deaths) for deaths in range(7)] == [0, 0.5, 1, 2, 4, 8, 8]
