"""Looking at a stranger's shards in a child process.

libhdf5 has had memory errors that a hostile file can reach. The child has a limit on its memory
and on the time of each answer; a shard that ends it is named, and another child goes on. What the
child says is JSON, so a child that a shard has taken over can lie, but not run code here.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import time
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from data.store.inspection import Comparison, Item, ShardReport, SoundInspector
from data.store.place import Place, place_of, text_of
from data.store.reader import Problem
from data.store.types import ItemKey

__all__ = ["ChildInspector"]

_ROOT = Path(__file__).resolve().parent.parent.parent
_MOST_ANSWER_BYTES = 1 << 30
_START_S = 120.0
"""Longest time until a child has imported what it needs."""


class ChildInspector:
    """As `SoundInspector`, at arm's length.

    Args:
        memory_bytes: address space of the child.
        timeout_s: longest time for one shard.
    """

    def __init__(self, *, memory_bytes: int = 4 << 30, timeout_s: float = 600.0) -> None:
        self.memory_bytes = memory_bytes
        self.timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def report(self, place: Place, *, deep: bool, clip_len_s: float) -> ShardReport:
        """What is in a shard, and what is wrong with it."""
        answer = self._ask({"report": text_of(place), "deep": deep, "clip_len_s": clip_len_s})
        try:
            return _report_from_json(answer)
        except (KeyError, TypeError, ValueError) as error:
            told = answer.get("died", f"the process that read it answered nonsense ({error})")
            message = f"{told}; do not read it with anything else: remove it"
            return ShardReport(problems=(Problem("shard", str(place), message),))

    def compare(self, one: Place, other: Place, key: ItemKey) -> Comparison:
        """How the rows of one key in two shards differ."""
        answer = self._ask({"compare": [text_of(one), text_of(other)], "key": asdict(key)})
        told = answer.get("told", answer.get("died", "cannot be compared"))
        return Comparison(rounding=answer.get("rounding") is True, told=str(told))

    def __enter__(self) -> ChildInspector:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            child = self._running()
            assert child.stdin is not None
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
            line = self._line(child, self.timeout_s)
        except (BrokenPipeError, TimeoutError) as error:
            line, slow = b"", isinstance(error, TimeoutError)
        else:
            slow = False
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
        code = self._end()
        if slow:
            return {"died": f"reading it took more than {self.timeout_s:g} s"}
        return {"died": f"the process that read it died (exit code {code})"}

    def _line(self, child: subprocess.Popen[bytes], timeout_s: float) -> bytes:
        """One line of the answer; TimeoutError if the child is silent for too long."""
        assert child.stdout is not None
        answer, deadline = bytearray(), time.monotonic() + timeout_s
        while not answer.endswith(b"\n") and len(answer) < _MOST_ANSWER_BYTES:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([child.stdout], [], [], left_s)[0]:
                raise TimeoutError
            piece = child.stdout.read1(1 << 20)  # type: ignore[attr-defined]
            if not piece:
                break
            answer += piece
        return bytes(answer)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            # -P: a folder `data` where the user stands is not ours.
            command = [sys.executable, "-P", "-m", "data.store.untrusted", str(self.memory_bytes)]
            paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
            self._line(self._child, _START_S)
        return self._child

    def _end(self) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        # It gets a moment to die of what it is dying of, for the exit code.
        try:
            code: int | None = child.wait(0.2)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was not sent is for a child that is dead: `code` tells of it
        return code


def _report_from_json(answer: dict[str, Any]) -> ShardReport:
    items = tuple(
        Item(ItemKey(str(id), str(content), int(part), int(parts)), int(crc32), clips)
        for (id, content, part, parts), crc32, clips in answer["items"]
        if clips is None or isinstance(clips, int)
    )
    problems = tuple(
        Problem(str(kind), str(where), str(message), "note" if level == "note" else "error")
        for kind, where, message, level in answer["problems"]
    )
    return ShardReport(items, problems)


def _report_to_json(report: ShardReport) -> dict[str, Any]:
    return {
        "items": [
            [[each.key.id, each.key.content, each.key.part, each.key.parts], each.crc32, each.clips]
            for each in report.items
        ],
        "problems": [list(astuple(each)) for each in report.problems],
    }


def _answer(question: dict[str, Any], inspector: SoundInspector) -> dict[str, Any]:
    if "report" in question:
        place = place_of(question["report"])
        clip_len_s = question["clip_len_s"]
        report = inspector.report(place, deep=question["deep"], clip_len_s=clip_len_s)
        return _report_to_json(report)
    one, other = map(place_of, question["compare"])
    return asdict(inspector.compare(one, other, ItemKey(**question["key"])))


def main() -> None:
    """The child: one JSON question per line of stdin, one JSON answer per line of stdout."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    inspector = SoundInspector()
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        answer = _answer(json.loads(line), inspector)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
