"""The one reader of configuration files of both programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, model_validator

from data.config import Group, dump_config, load_config, parse_config
from data.errors import UsageError, nearest


class Inner(Group):
    epochs: int = Field(5, ge=1)
    learning_rate: float = 1e-4
    warm_up: int = 0

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Inner:
        if self.warm_up > self.epochs:
            raise ValueError(f"warm_up={self.warm_up} is more than epochs={self.epochs}")
        return self


class Whole(Group):
    store: Path
    loop: Inner = Inner()
    named: dict[str, Inner] = Field(default_factory=dict)
    either: Inner | None = None
    plugins: dict[str, dict[str, int]] = Field(default_factory=dict)


def read(tmp_path: Path, text: str, *overrides: str) -> Whole:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(Whole, path, overrides)


def test_values_and_overrides_are_read(tmp_path: Path) -> None:
    whole = read(
        tmp_path,
        "store: s\nloop: {epochs: 7}\n",
        "loop.learning_rate=1e-3",
        "plugins={tea: {}}",
        "named.x.epochs=2",
    )
    assert (whole.loop.epochs, whole.loop.learning_rate) == (7, 1e-3)
    assert whole.plugins == {"tea": {}}
    assert whole.named["x"].epochs == 2


def test_a_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    whole = read(tmp_path, "store: s\nloop: {epochs: 7}\n")
    assert read(tmp_path, dump_config(whole)) == whole


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("store: s\nlop: {}\n", (), r"c\.yaml: unknown key 'lop'; did you mean 'loop'\?"),
        ("store: s\n", ("loop.epoch=3",), r"unknown key 'loop\.epoch'; did you mean 'epochs'\?"),
        ("store: s\nnamed: {a: {epoch: 1}}", (), r"'named\.a\.epoch'; did you mean 'epochs'\?"),
        ("store: s\neither: {epoch: 1}", (), r"'either\.epoch'; did you mean 'epochs'\?"),
        ("store: s\n", ("loop.epochs=0",), r"'loop\.epochs': input should be greater than or .* 0"),
        ("store: s\n", ("loop.warm_up=9",), r"'loop': warm_up=9 is more than epochs=5"),
        ("{}", (), r"'store' is needed and was not given"),
        ("store: s\n", ("loop",), r"--set 'loop' is not of the form a\.b=value"),
        ("store: s\n", ("store.x=1",), r"--set store\.x: 'store' holds the value 's'"),
        ("store: s\n", ("loop={",), r"--set 'loop=\{' is not valid YAML"),
        ("store: [", (), r"c\.yaml is not valid YAML"),
        ("- a\n", (), r"expected `key: value` lines, found a list"),
        ("store: s\nstore: t\n", (), r"key 'store' is given twice"),
        ("store: !!python/name:os.system\n", (), r"could not determine a constructor"),
    ],
)
def test_wrong_configuration_is_answered_with_a_sentence(
    tmp_path: Path, text: str, override: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text, *override)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the configuration file .*none\.yaml"):
        load_config(Whole, tmp_path / "none.yaml")


def test_given_values_are_not_changed_by_overrides() -> None:
    values = {"store": "s", "loop": {"epochs": 3}}
    parse_config(Whole, values, ["loop.epochs=4"], source="test")
    assert values == {"store": "s", "loop": {"epochs": 3}}


def test_a_long_list_of_allowed_words_is_not_poured_out() -> None:
    words = [f"ViT-B-{index}" for index in range(100)]
    assert nearest("ViT-B-33x", words).startswith("did you mean 'ViT-B-33'? allowed: ViT-B-33, ")
    assert nearest("ViT-B-33x", words).endswith(" and 90 more")
    assert nearest("xyz", words).endswith(" and 90 more")
    assert nearest("b", ["a", "b", "c"]) == "did you mean 'b'? allowed: a, b, c"
