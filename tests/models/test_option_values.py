"""Keyword options are checked by what a constructor declares, before it is called."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from data.errors import UsageError
from models.options import check_values


def build(
    *,
    count: int = 1,
    share: float | None = None,
    word: str = "a",
    on: bool = False,
    kind: Literal["a", "b"] = "a",
) -> None:
    """A constructor."""


@pytest.mark.parametrize(
    "given",
    [{"count": 3}, {"share": 1}, {"share": None}, {"word": ""}, {"on": True}, {"kind": "c"}, {}],
)
def test_values_of_the_declared_type_pass_and_other_types_are_left_to_the_constructor(
    given: dict[str, Any],
) -> None:
    check_values("thing", build, given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"count": "3"}, "thing: option 'count' is '3'; allowed: int"),
        ({"count": True}, "option 'count' is True"),
        ({"count": 3.0}, "option 'count' is 3.0"),
        ({"share": "half"}, r"'half'; allowed: float \| None"),
        ({"share": float("nan")}, "is nan"),
        ({"word": None}, "option 'word' is None; allowed: str"),
        ({"on": 1}, "option 'on' is 1; allowed: bool"),
        ({"count": 1, "word": ["x" * 999]}, "option 'word'"),
    ],
)
def test_values_of_another_type_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        check_values("thing", build, given)
    assert len(str(caught.value)) < 300
