"""The tables of docs/models.md, made of what the registry has.

`python benchmarks/model_sizes.py --write` puts them into the page between lines of the form
`<!-- parts -->` and `<!-- end -->`; a test compares.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import torch

from models.retrieval import MODELS, PLUGINS, PRESETS, Preset, RetrievalModel, create_model
from models.retrieval.build import Blueprint, Dims, Options, read_options
from models.retrieval.lineage import LineageOptions
from models.retrieval.stages import Part

__all__ = ["BLOCKS", "blocks", "has_language_model", "published", "table", "with_blocks"]

VIDEO, TEXT = 2818, 512


def published(name: str, preset: Preset) -> RetrievalModel:
    """A model at its published size; the layers of a language model are random."""
    sides = _sides(name)
    with _quiet():
        return create_model(
            name,
            video_dim=VIDEO,
            text_dim=TEXT,
            side_dims=sides,
            preset=preset,
            **_layers(MODELS.get(name).options, preset),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that random layers are no language model."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def has_language_model(name: str) -> bool:
    """Whether layers of a language model are part of it, too large to be filled for a count."""
    return "llm_width" in MODELS.get(name).options.model_fields


def _layers(options: type[Options], preset: Preset = "fixed") -> dict[str, Any]:
    """What a model or plug-in with a language model needs to be built without a file."""
    asks = "layers_file" in options.model_fields and preset != "release"
    return {"weights": "random"} if asks else {}


def _sides(name: str) -> dict[str, int]:
    needs = [need for need in MODELS.get(name).requires if need.startswith("side.")]
    return {need.removeprefix("side."): TEXT for need in needs}


def parts_table() -> str:
    """Parts × models: ● in `fixed`, ○ in another preset only; and the plug-ins that bring one."""
    here: dict[tuple[str, type], dict[str, str]] = {}
    for name in MODELS:
        for preset in PRESETS:
            for key in _pieces(blueprint(name, preset)):
                here.setdefault(key, {}).setdefault(name, "●" if preset == "fixed" else "○")
    brought = {plugin: _brought(plugin) for plugin in PLUGINS}
    for key in dict.fromkeys(key for keys in brought.values() for key in keys):
        here.setdefault(key, {})
    stages = [stage for stage, _ in _STAGES]
    keys = sorted(here, key=lambda key: (stages.index(key[0]), -len(here[key])))
    rows = [
        [
            dict(_STAGES)[stage],
            f"`{part.__module__.rsplit('.', 1)[1]}.{part.__name__}`",
            *(here[stage, part].get(name, "") for name in MODELS),
            ", ".join(f"`{plugin}`" for plugin in PLUGINS if (stage, part) in brought[plugin]),
            _first_sentence(part),
        ]
        for stage, part in keys
    ]
    return table(
        " | ".join(["stage", "part", *(f"`{name}`" for name in MODELS), "plug-in", "what"]), rows
    )


_STAGES = (
    ("encoders", "encoders"),
    ("merge", "merge"),
    ("fuser", "fuser"),
    ("refiner", "refiner"),
    ("decoder", "decoder"),
    ("start", "query start"),
    ("head", "head"),
    ("aligner", "aligner"),
    ("criterion", "loss"),
    ("pass", "extra pass"),
    ("view", "view"),
)


def blueprint(
    name: str, preset: Preset = "fixed", sides: Mapping[str, int] | None = None
) -> Blueprint:
    """A model before it is composed, without memory for its numbers."""
    family = MODELS.get(name)
    given = {**family.presets.get(preset, {}), **_layers(family.options, preset)}
    with torch.device("meta"), _quiet():
        options = read_options(name, family.options, given)
        return family.build(Dims(VIDEO, TEXT, {**_sides(name), **(sides or {})}), options)


def _pieces(drawn: Blueprint) -> list[tuple[str, type]]:
    found: list[tuple[str, type]] = []
    for stage, part in drawn.parts.in_order():
        if not (stage == "criterion" and getattr(part, "weight", 1) == 0):
            found.append((stage, type(part)))
        if isinstance(start := getattr(part, "init", None), Part):
            found.append(("start", type(start)))
    return list(dict.fromkeys(found))


def _brought(plugin: str) -> list[tuple[str, type]]:
    """The parts that a plug-in brings to the first base that takes it."""
    known = PLUGINS.get(plugin)
    base = next(name for name in ("qd_detr", *MODELS) if name not in known.conflicts)
    sides = {"narrative": TEXT}
    before = blueprint(base, sides=sides)
    with torch.device("meta"), _quiet():
        options = known.options(**_layers(known.options))
        after = known.apply(before, Dims(VIDEO, TEXT, sides), options)
    return [key for key in _pieces(after) if key not in _pieces(blueprint(base, sides=sides))]


def _first_sentence(part: type) -> str:
    text = " ".join(inspect.cleandoc(part.__doc__ or "").split("\n\n")[0].split())
    return _cell(_sentences(text)[0].rstrip("."))


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.)(?<!Eq\.)(?<!Sec\.)\s", " ".join(text.split()))


def switches_table(name: str) -> str:
    """The switches of a model: options that a preset changes, and choices of its own."""
    family = MODELS.get(name)
    rows: list[list[str]] = []
    first: dict[str, str] = {}
    for key in switches(name):
        field = family.options.model_fields[key]
        presets = [family.presets.get(each, {}).get(key, field.default) for each in PRESETS]
        shown = [_value(each) for each in presets]
        shown[1:] = ["" if each == shown[0] else each for each in shown[1:]]
        what = told(family.options, key)
        same = first.setdefault(what, key)
        rows.append(
            [
                f"`{key}`",
                _values(field.annotation),
                *shown,
                what if same == key else f"see `{same}`",
            ]
        )
    return table("switch | values | " + " | ".join(PRESETS) + " | what", rows)


def switches(name: str) -> list[str]:
    """Names of the options that are switches."""
    family = MODELS.get(name)
    changed = {key for values in family.presets.values() for key in values}
    return [
        key
        for key, field in family.options.model_fields.items()
        if key in changed or (_is_choice(field.annotation) and key not in _shared())
    ]


def numbers_line(name: str) -> str:
    """The other options of a model that its ancestor does not have, or has with another default."""
    fields = MODELS.get(name).options.model_fields
    ours = [
        f"`{key}` {_value(field.default)}"
        for key, field in fields.items()
        if key not in switches(name) and _shared().get(key, _Missing) != field.default
    ]
    less = [f"`{key}`" for key in _shared() if key not in fields]
    lines = [f"Other options: {', '.join(ours)}." if ours else ""]
    if less and len(less) < len(_shared()) / 2:
        lines.append(f"Without {', '.join(less)}.")
    return " ".join(filter(None, lines))


def shared_table() -> str:
    """Options of the lineage."""
    fields = LineageOptions.model_fields
    rows = [
        [f"`{key}`", _values(field.annotation), _value(field.default), told(LineageOptions, key)]
        for key, field in fields.items()
    ]
    return table("option | values | default | what", rows)


def models_text() -> str:
    """Title, presets and switches of every model."""
    pieces = []
    for name in MODELS:
        needs = ", ".join(f"`{each}`" for each in sorted(MODELS.get(name).requires))
        reads = f" Reads {needs}." if needs else ""
        pieces += [
            f"### `{name}`",
            f"{_title(MODELS.get(name).build)}{reads}",
            switches_table(name),
            numbers_line(name),
        ]
    return "\n\n".join(filter(None, pieces))


def plugins_text() -> str:
    """Title, stage, needs, options and refusals of every plug-in."""
    pieces = []
    for name in PLUGINS:
        plugin = PLUGINS.get(name)
        fields = plugin.options.model_fields
        rows = [
            [
                f"`{key}`",
                _values(field.annotation),
                _value(field.default),
                _value(plugin.off[key]) if key in plugin.off else "",
                told(plugin.options, key),
            ]
            for key, field in fields.items()
        ]
        pieces += [
            f"### `{name}`",
            f"{_title(plugin.apply)} Acts on: {plugin.stage}. Needs "
            f"{', '.join(f'`{each}`' for each in sorted(plugin.requires))}.",
            table("option | values | default | off | what", rows),
            _refusals(plugin.conflicts),
        ]
    return "\n\n".join(filter(None, pieces))


def _refusals(conflicts: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for other, reason in conflicts.items():
        reasons.setdefault(reason, []).append(f"`{other}`")
    return "\n".join(
        f"- Not with {', '.join(others)}: {reason}." for reason, others in reasons.items()
    )


class _Missing:
    """Default of an option that is not there."""


def _shared() -> dict[str, Any]:
    return {key: field.default for key, field in LineageOptions.model_fields.items()}


def _is_choice(annotation: Any) -> bool:
    return annotation is bool or get_origin(annotation) is Literal


def _values(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(_value(each) for each in get_args(annotation))
    if get_origin(annotation) is UnionType:
        return " or ".join(_values(each) for each in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "whole numbers"
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    return names.get(annotation, "`none`")


def _value(value: Any) -> str:
    words = {True: "true", False: "false", None: "none"}
    if value is None or isinstance(value, bool):
        return f"`{words[value]}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def told(options: type[Options], key: str) -> str:
    """What an option is: from the docstring of the module that has it, or of its class."""
    after = ""
    for owner in options.__mro__:
        if not issubclass(owner, Options) or key not in owner.model_fields:
            continue
        for entries in (_entries(sys.modules[owner.__module__].__doc__), _entries(owner.__doc__)):
            text = _PRESETS_SAY.sub("", entries.get(key, "")).strip()
            if text.startswith(("release: ", "paper: ")):  # and what it is says its ancestor
                after = f". {text}"
            elif text and not text.startswith("see the module"):
                return _cell((text.rstrip(".") + after).rstrip("."))
        prose = _sentences(sys.modules[owner.__module__].__doc__ or "")
        if named := [each for each in prose if f"`{key}: " in each]:
            return _cell(" ".join(named).rstrip("."))
    raise LookupError(f"{options.__name__}.{key} is described nowhere")


_PRESETS_SAY = re.compile(
    r"(?:^|(?<=[.;])\s+)(?:release|paper|release and paper): [\w\-]+(?:\.\d+)?\.(?=\s|$)"
)


def _entries(document: str | None) -> dict[str, str]:
    """`name, other: text` entries of a docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    text = inspect.cleandoc(document or "").replace("\nArgs:\n", "\n\n")
    indent = 0
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        start = re.match(r"\s*(\w+(?:, \w+)*): (.*)", line)
        if start and depth in (0, 4) and (not names or depth <= indent):
            names, indent = start[1].split(", "), depth
            found |= dict.fromkeys(names, start[2])
        elif names and depth > indent:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names, indent = [], 0
    return found


def _title(function: Callable[..., Any]) -> str:
    text = inspect.cleandoc(sys.modules[function.__module__].__doc__ or "")
    return " ".join(text.split("\n\n")[0].split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def table(header: str, rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; headings are separated by ` | `."""
    columns = header.count(" | ") + 1
    lines = [f"| {header} |", "|" + "---|" * columns]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


BLOCKS: Mapping[str, Callable[[], str]] = {
    "parts": parts_table,
    "shared options": shared_table,
    "models": models_text,
    "plug-ins": plugins_text,
}
"""What the page has between its marks, beside `sizes`."""


def blocks(page: str) -> dict[str, str]:
    """What stands between the marks of a page, by name."""
    return {name: text.strip() for name, text in _BLOCK.findall(page)}


def with_blocks(page: str, texts: Mapping[str, str]) -> str:
    """The page with other text between those of its marks that are named."""

    def put(found: re.Match[str]) -> str:
        text = texts.get(found[1], found[2].strip())
        return f"<!-- {found[1]} -->\n\n{text}\n\n<!-- end -->"

    return _BLOCK.sub(put, page)


_BLOCK = re.compile(r"<!-- ((?!end)[\w -]+?) -->\n(.*?)<!-- end -->", re.DOTALL)
