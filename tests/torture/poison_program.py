"""The `pipeline` command with the toy stages and the poisonous one."""

from __future__ import annotations

from tests.torture.poison_stage import PoisonStage
from tests.torture.toy_world import use_toys

if __name__ == "__main__":
    use_toys(PoisonStage)
    from pipeline.cli import main

    main()
