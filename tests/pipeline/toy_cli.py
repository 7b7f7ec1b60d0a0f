"""The `pipeline` command with the toy stages: `python toy_cli.py run --config ...`."""

from __future__ import annotations

import toys

import pipeline.stages  # noqa: F401 - the real ones register before the toys take their place
from pipeline.cli import main
from pipeline.stage import STAGES

if __name__ == "__main__":
    STAGES._things = toys.toy_registry()
    main()
