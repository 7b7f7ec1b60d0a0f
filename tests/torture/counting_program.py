"""The `pipeline` command with a captions stage that knows the counting captioner."""

from __future__ import annotations

from tests.torture.counting import CountingCaptions

if __name__ == "__main__":
    import pipeline.stages  # noqa: F401 - the real ones register first
    from pipeline.cli import main
    from pipeline.stage import STAGES

    STAGES._things["captions"] = CountingCaptions  # type: ignore[attr-defined]  # as toy_world does
    main()
