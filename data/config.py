"""Configuration: YAML files read into pydantic models, with errors that a user can act on.

    class Loop(Group):
        epochs: int = Field(200, ge=1, description="Passes over the training queries.")

    config = load_config(TrainerConfig, Path("demo.yaml"), ["loop.epochs=3"])

Both programs read their configuration here. An unknown key, a wrong value and a failed cross-check
all become one `UsageError` that uses the names the user typed.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from data.errors import UsageError, nearest
from data.foreign import brief, read_limited

__all__ = ["Group", "dump_config", "load_config", "overridden", "parse_config", "parse_yaml"]

M = TypeVar("M", bound=BaseModel)


class Group(BaseModel):
    """A group of options: unknown keys are errors, numbers are finite, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


def load_config(model: type[M], path: Path, overrides: Sequence[str] = ()) -> M:
    """Read a YAML file, apply `--set` overrides, validate.

    Args:
        model: the pydantic model of the whole file.
        path: the YAML file.
        overrides: `a.b=value`; the value is YAML (`3`, `true`, `null`, `[a, b]`, `{tea: {}}`).

    Raises:
        UsageError: missing file, broken YAML, unknown key (names the nearest), wrong value.
    """
    return parse_config(model, _read_yaml(path), overrides, source=str(path))


def parse_config(
    model: type[M], values: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str
) -> M:
    """Validate values that are already in memory, as `load_config` does for a file.

    Args:
        model: the pydantic model of the whole configuration.
        values: nested mappings; not changed.
        overrides: as in `load_config`.
        source: where the values came from, for error messages.
    """
    merged = overridden(values, overrides)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        lines = [_explain(model, each) for each in error.errors(include_url=False)]
        where = source + (f" with {_flags(overrides)}" if overrides else "")
        raise UsageError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from None


def overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Values with `--set` overrides, not validated yet.

    Args:
        values: nested mappings; not changed.
        overrides: as in `load_config`.

    Raises:
        UsageError: an override that is not of the form a.b=value, or whose value is no YAML.
    """
    merged: dict[str, Any] = dict(values)
    for override in overrides:
        merged = _with_override(merged, override)
    return merged


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A configuration that was kept as text, e.g. in a checkpoint; not validated yet.

    Args:
        text: YAML.
        source: where it came from, for error messages.

    Raises:
        UsageError: too long, broken, or no mapping.
    """
    if len(text) > _MAX_YAML_BYTES:
        raise UsageError(
            f"{source} is longer than the {_MAX_YAML_BYTES:,} characters that are read"
        )
    values = _yaml(text, source)
    if not isinstance(values, dict):
        raise UsageError(f"{source} holds no `key: value` lines")
    return values


def dump_config(config: BaseModel) -> str:
    """The whole configuration, defaults included, as YAML that `load_config` reads back."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


_MAX_YAML_BYTES = 1 << 20
"""Of a configuration; the longest that ships has 2 KiB."""

_MAX_YAML_NODES = 100_000
"""Values of a configuration, aliases written out: ten lines of aliases can mean billions."""

_MAX_YAML_DEPTH = 32


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error; plain YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            # `yes` and `true`, `1` and `0x1` are the same key
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _refused(key_node, "a list or a mapping cannot be a key")
            if key in seen:
                raise _refused(key_node, f"key '{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refused(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _check_size(root: yaml.Node) -> None:
    """Measure what a document stands for, before any value of it is built."""
    known: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """How many values, and how deeply nested."""
        if id(node) in open_nodes:
            raise _refused(node, "an alias stands for something that it is a part of")
        if id(node) not in known:
            open_nodes.add(id(node))
            inner = [measure(each) for each in _inner(node)]
            open_nodes.discard(id(node))
            known[id(node)] = (
                1 + sum(n for n, _ in inner),
                1 + max((d for _, d in inner), default=0),
            )
        count, depth = known[id(node)]
        if count > _MAX_YAML_NODES:
            raise _refused(node, f"with its aliases it has more than {_MAX_YAML_NODES:,} values")
        if depth > _MAX_YAML_DEPTH:
            raise _refused(node, f"it is nested deeper than {_MAX_YAML_DEPTH} levels")
        return count, depth

    measure(root)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    """The members of a list; the keys and values of a mapping."""
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_limited(path, _MAX_YAML_BYTES, "the configuration file")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the configuration file '{path}' is not UTF-8 text: {error}") from None
    values = _yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    return values


def _yaml(text: str, where: str) -> Any:
    try:
        # _StrictLoader is a SafeLoader: it builds plain values only
        loader = _StrictLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_size(root)
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"{where} is nested deeper than {_MAX_YAML_DEPTH} levels") from None
    except (ValueError, LookupError) as error:
        # PyYAML's own builders of dates, numbers and bytes, given nonsense after a tag
        raise UsageError(f"{where} holds a value that does not fit its tag: {error}") from None


def _with_override(values: Mapping[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UsageError(f"--set {override!r} is not of the form a.b=value, e.g. loop.epochs=10")
    return _put(values, key.split("."), _yaml(text, f"--set {override!r}"), key)


def _put(values: Mapping[str, Any], path: Sequence[str], value: Any, key: str) -> dict[str, Any]:
    if len(path) == 1:
        return {**values, path[0]: value}
    inner = values.get(path[0])
    if inner is not None and not isinstance(inner, Mapping):
        raise UsageError(
            f"--set {key}: '{path[0]}' holds the value {brief(inner)} and has no keys inside"
        )
    return {**values, path[0]: _put(inner or {}, path[1:], value, key)}


def _explain(model: type[BaseModel], error: ErrorDetails) -> str:
    names = [str(part) for part in error["loc"]]
    name = ".".join(names)
    if error["type"] == "extra_forbidden":
        keys = _keys_at(model, error["loc"][:-1])
        hint = nearest(names[-1], keys)
        inner = ".".join((*names[:-1], "options"))
        more = (
            f"; what the network itself takes stands under '{inner}'" if "options" in keys else ""
        )
        return f"unknown key '{name}'; {hint}{more}"
    if error["type"] == "missing":
        return f"'{name}' is needed and was not given"
    if error["type"] == "value_error":
        reason = error["msg"].removeprefix("Value error, ")
        return f"'{name}': {reason}" if name else reason
    reason = error["msg"][:1].lower() + error["msg"][1:]
    return f"'{name}': {reason}, got {brief(error['input'])}"


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Keys that are allowed at a place inside `model`; none where the place is not a group."""
    candidates: list[Any] = [model]
    for part in location:
        inner = [each for candidate in candidates for each in _step(candidate, part)]
        # the names of union branches are in the location too, and are no step into the values
        candidates = inner or candidates
    return sorted({name for each in candidates if _is_group(each) for name in each.model_fields})


def _step(candidate: Any, part: int | str) -> list[Any]:
    if _is_group(candidate):
        field = candidate.model_fields.get(str(part))
        return _branches(field.annotation) if field else []
    if typing.get_origin(candidate) in (dict, list, tuple, Mapping, Sequence):
        return [each for argument in typing.get_args(candidate) for each in _branches(argument)]
    return []


def _branches(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [each for inner in typing.get_args(annotation) for each in _branches(inner)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _branches(typing.get_args(annotation)[0])
    return [annotation]


def _is_group(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _flags(overrides: Sequence[str]) -> str:
    return " ".join(f"--set {each}" for each in overrides)
