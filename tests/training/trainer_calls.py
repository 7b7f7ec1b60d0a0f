"""The `trainer` command, called in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner, Result

from training.cli import app

__all__ = ["call", "good"]


def call(*arguments: Any) -> Result:
    """What came of `trainer ARGUMENTS`."""
    return CliRunner().invoke(app, [str(each) for each in arguments])


def good(*arguments: Any) -> Result:
    """The same, where it must succeed."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result
