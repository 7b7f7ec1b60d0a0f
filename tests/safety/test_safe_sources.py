"""The tree itself: no line of it runs what it reads. By syntax tree, so that comments may speak."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("data", "models", "pipeline", "training", "benchmarks")

FORBIDDEN = {
    **dict.fromkeys(("pickle.load", "pickle.loads", "pickle.Unpickler"), "runs what a file says"),
    **dict.fromkeys(("cPickle.load", "dill.load", "joblib.load", "shelve.open"), "is pickle"),
    **dict.fromkeys(("marshal.load", "marshal.loads"), "reads code"),
    **dict.fromkeys(
        ("pandas.read_pickle", "torch.hub.load", "torch.jit.load"), "runs what it reads"
    ),
    **dict.fromkeys(("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"), "tags"),
    "yaml.safe_load": "has no limits on aliases: use data.config",
    **dict.fromkeys(("eval", "exec", "compile", "__import__"), "runs text"),
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput"), "starts a shell"),
    "subprocess.getstatusoutput": "starts a shell",
    "tempfile.mktemp": "is a race",
    "importlib.import_module": "runs a module by name",
    "json.loads": "bends NaN, twins and depth: use data.foreign.strict_json",
    "json.load": "bends NaN, twins and depth: use data.foreign.strict_json",
    "torch.load": "unpickles: use models.safe_load",
    "typer.echo": "prints escape sequences: use data.terminal.say",
    "rich.console.Console": "prints escape sequences: use data.terminal.plain_console",
    "print": "prints escape sequences: use data.terminal.say",
    **dict.fromkeys(("extractall", "extract"), "writes where an archive says"),
}
"""Calls by full name, and why not."""

ALLOWED = {
    "data/pickles.py pickle.Unpickler": "its instructions are checked first, no name is imported",
    "models/torchscript.py pickle.Unpickler": "its instructions are checked first, names are ours",
    "models/safe_load.py torch.load": "weights_only, after and before checks of its own",
    "data/terminal.py typer.echo": "this is where text is made printable",
    "data/terminal.py rich.console.Console": "this is where text is made printable",
    "data/video/__init__.py importlib.import_module": "a decoder of one's own; a config may not",
    "data/video/checks.py importlib.import_module": "av, decord or torchcodec, by constant names",
    "models/retrieval/__init__.py importlib.import_module": "the modules of its own folder",
    "pipeline/doctor.py importlib.import_module": "looks whether packages import, constant names",
    "data/store/untrusted.py json.loads": "answers of its own child process, types checked",
    "pipeline/demo.py json.loads": "a corpus that the demo rendered itself",
}
"""`file call`, and why it is safe there."""

FROM_FOLDERS = {"from_pretrained", "_load_tokenizer_from_pretrained", "from_config"}
"""Methods of transformers that ask on the terminal, unless told, whether code may be run."""

KEYWORDS = {
    "shell": "starts a shell",
    "trust_remote_code": "runs code",
    "allow_pickle": "is pickle",
}
"""Arguments that must not be true, nor anything but the constant False."""


def calls(file: Path) -> Iterator[tuple[int, str, ast.Call]]:
    """Line, full name and node of every call; `from x import y` is followed."""
    tree = ast.parse(file.read_text())
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                top = each.name.partition(".")[0]
                names[each.asname or top] = each.name if each.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, full_name(node.func, names), node
        elif isinstance(node, ast.ClassDef):
            # a base class is used as a call is
            for base in node.bases:
                yield node.lineno, full_name(base, names), ast.Call(base, [], [])


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return ""


def sources(root: Path) -> list[Path]:
    return sorted(file for folder in FOLDERS for file in (root / folder).rglob("*.py"))


def found_in(file: Path, name: str) -> list[tuple[int, str, str]]:
    """Line, call and reason of what is forbidden in one file."""
    found = []
    for line, call, node in calls(file):
        short = call.rpartition(".")[2]
        why = FORBIDDEN.get(call) or (FORBIDDEN.get(short) if short.startswith("extract") else None)
        constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
        if call == "importlib.import_module" and constant:
            continue
        if why and f"{name} {call}" not in ALLOWED:
            found.append((line, call, why))
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS and not _is_false(keyword.value):
                found.append((line, f"{keyword.arg}=", KEYWORDS[keyword.arg]))
        if call == "torch.load" and not _says(node, "weights_only", True):
            found.append((line, call, "without weights_only=True"))
        if short in FROM_FOLDERS and not _says(node, "trust_remote_code", False):
            found.append((line, call, "without trust_remote_code=False asks whether to run code"))
    return found


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _says(node: ast.Call, name: str, value: object) -> bool:
    given = {each.arg: each.value for each in node.keywords}.get(name)
    return isinstance(given, ast.Constant) and given.value is value


def test_nothing_in_the_tree_runs_what_it_reads(root: Path) -> None:
    files = sources(root)
    assert len(files) > 100
    found = [
        f"{file.relative_to(root)}:{line}: {call} {why}"
        for file in files
        for line, call, why in found_in(file, str(file.relative_to(root)))
        if not (file.is_relative_to(root / "benchmarks") and call in TOLD_BY_BENCHMARKS)
    ]
    assert found == []


TOLD_BY_BENCHMARKS = {"print", "json.loads", "json.load", "rich.console.Console"}
"""Benchmarks print their own figures and read what they wrote."""


def test_every_exception_is_still_needed(root: Path) -> None:
    used = {
        f"{file.relative_to(root)} {call}" for file in sources(root) for _, call, _ in calls(file)
    }
    assert [each for each in ALLOWED if each not in used] == []


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("from pickle import loads as safe\nsafe(b)", "pickle.loads"),
        ("import pickle as p\nclass U(p.Unpickler): pass", "pickle.Unpickler"),
        ("import torch\ntorch.load(f, weights_only=False)", "torch.load"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "allow_pickle="),
        ("import numpy as np\nnp.load(f, allow_pickle=flag)", "allow_pickle="),
        ("import subprocess\nsubprocess.run(c, shell=True)", "shell="),
        ("import yaml\nyaml.load(t, Loader=yaml.Loader)", "yaml.load"),
        ("M.from_pretrained(n, trust_remote_code=True)", "trust_remote_code="),
        ("import m\nm.K.from_pretrained(n)", "m.K.from_pretrained"),
        ("import m\nm.K.from_pretrained(n, trust_remote_code=flag)", "trust_remote_code="),
        ("eval('1')", "eval"),
        ("import zipfile\nzipfile.ZipFile(f).extractall()", ".extractall"),
        ("from rich.console import Console\nConsole()", "rich.console.Console"),
    ],
)
def test_the_search_finds_each_of_them(text: str, call: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(text)
    assert call in [found for _, found, _ in found_in(tmp_path / "x.py", "x.py")]


def test_methods_of_the_same_name_and_words_in_comments_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "# pickle.load(f)\nnet.eval()\nre.compile('a')\nrun(shell=False)"
    )
    assert found_in(tmp_path / "x.py", "x.py") == []
