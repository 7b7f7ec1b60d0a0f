"""Workers start quickly: what they import."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "ray", "av", "decord", "transformers", "open_clip", "spacy"}


def test_a_worker_and_the_registry_of_stages_import_no_heavy_library() -> None:
    script = (
        "import sys, pipeline.engine.work, pipeline.stages, data.video\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
