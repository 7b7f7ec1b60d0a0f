from __future__ import annotations

import subprocess
import sys

from models.compat import ensure_torchvision


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_can_be_imported_after_the_remedy_and_the_state_is_told() -> None:
    state = run(
        "from models.compat import ensure_torchvision as e\n"
        "state = e()\n"
        "assert e() == state\n"
        "if state != 'absent': import torchvision\n"
        "print(state)"
    )
    assert state in {"real", "stubbed", "absent"}
    assert ensure_torchvision() in {"real", state}  # another test may have imported it already


def test_a_missing_torchvision_is_absent_and_no_error() -> None:
    code = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torchvision' else find(name, *a)\n"
        "from models.compat import ensure_torchvision\n"
        "print(ensure_torchvision())"
    )
    assert run(code) == "absent"
