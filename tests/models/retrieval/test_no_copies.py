"""Papers fork each other's code; this family does not (DESIGN §6)."""

from __future__ import annotations

import ast
import copy
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.retrieval import MODELS

ROOT = Path(__file__).parents[3]
Function = ast.FunctionDef | ast.AsyncFunctionDef
LEAST = 4
"""Statements, nested ones too, from which equal bodies are a copy and not a coincidence."""


class Plain(ast.NodeTransformer):
    """Takes from a function what a copyist would change: the names of its own variables,
    annotations, docstrings.

    Args:
        function: the function.
    """

    def __init__(self, function: Function) -> None:
        inside = list(ast.walk(function))
        self.own = {n.arg for n in inside if isinstance(n, ast.arg)}
        self.own |= {
            n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        self.own |= {n.name for n in inside if isinstance(n, Function)}
        self.names: dict[str, str] = {}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.plain(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self.plain(node.arg))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        value = node.value or ast.Constant(None)
        return self.generic_visit(ast.Assign([node.target], value))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns, node.decorator_list, node.name = None, [], self.plain(node.name)
        node.body = without_docstring(node.body)
        return self.generic_visit(node)

    def plain(self, name: str) -> str:
        if name not in self.own:
            return name
        return self.names.setdefault(name, f"own {len(self.names)}")


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return body[1:] or [ast.Pass()]
    return body


def body_of(function: Function) -> str | None:
    """The body in plain form, None if it is short."""
    plain = copy.deepcopy(function)
    body = without_docstring(plain.body)
    if sum(isinstance(node, ast.stmt) for each in body for node in ast.walk(each)) < LEAST:
        return None
    rules = Plain(plain)
    rules.visit(plain.args)
    return "\n".join(ast.dump(rules.visit(each)) for each in body)


def copies(sources: dict[str, str]) -> list[list[str]]:
    """Groups of functions with equal bodies, each as `file:line name`."""
    found: dict[str, list[str]] = defaultdict(list)
    for file, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, Function) and (body := body_of(node)):
                found[body].append(f"{file}:{node.lineno} {node.name}")
    return [places for places in found.values() if len(places) > 1]


def sources(*folders: str) -> dict[str, str]:
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def test_no_two_functions_of_the_models_have_equal_bodies() -> None:
    found = copies(sources("models"))
    assert not found, "\n".join(" = ".join(places) for places in found)


def test_a_copy_with_other_names_and_another_docstring_is_found() -> None:
    one = "def f(x: int) -> int:\n    'Sum.'\n    a = x\n    a += 1\n    a *= 2\n    return a\n"
    two = "class C:\n    def g(y):\n        b = y\n        b += 1\n        b *= 2\n        return b"
    other = two.replace("+= 1", "+= 3")
    assert copies({"a.py": one, "b.py": two}) == [["a.py:1 f", "b.py:2 g"]]
    assert copies({"a.py": one, "b.py": other}) == []


def words(source: str) -> Iterator[tuple[int, str]]:
    """(line, word) of every identifier and of every string that is not documentation."""
    tree = ast.parse(source)
    prose = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from ((node.lineno, word) for word in re.findall(r"[\w-]+", node.value))
        names = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname"))
        line = getattr(node, "lineno", 0)
        yield from ((line, name) for name in names if isinstance(name, str))
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((line, name) for name in node.module.split("."))


MEANT_OTHERWISE = {
    # the demo trains one base, by the path of its recipe
    ("pipeline/demo.py", "qd_detr"),
    # a prompt for captions, named after its paper as the model is
    ("pipeline/stages/captions.py", "lmr"),
    # the format in which that tool writes its predictions
    ("training/predictions/__init__.py", "univtg"),
}


def test_no_code_outside_the_models_names_one() -> None:
    named = {
        (file, word): f"{file}:{line} {word}"
        for file, source in sources("data", "pipeline", "training").items()
        for line, word in words(source)
        if word in MODELS
    }
    strange = {place for key, place in named.items() if key not in MEANT_OTHERWISE}
    assert not strange, "\n".join(sorted(strange))
    assert named.keys() >= MEANT_OTHERWISE, "an exception that is not needed any more"


@pytest.mark.parametrize(
    "source", ["x = 'the qd_detr model'", "qd_detr = 1", "from models.retrieval.qd_detr import x"]
)
def test_a_named_model_is_found(source: str) -> None:
    assert "qd_detr" in {word for _, word in words(source)}
    assert "qd_detr" not in {word for _, word in words('"""Like qd_detr."""\nx = 1')}
