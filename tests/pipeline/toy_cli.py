"""The `pipeline` command with the toy stages: `python toy_cli.py run --config ...`."""

from __future__ import annotations

import functools
import json
import os

import toys

import pipeline.run
import pipeline.stages  # the real ones register before the toys take their place
from pipeline.cli import main
from pipeline.stage import STAGES

if __name__ == "__main__":
    STAGES._things = toys.toy_registry()
    limits = json.loads(os.environ.get("TOY_LIMITS", "{}"))
    pipeline.run.Limits = functools.partial(pipeline.run.Limits, **limits)  # type: ignore[misc]
    main()
