"""`pipeline doctor`: is this environment able to do the work, and if not, what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from data.errors import UsageError, how_to_install
from data.store.scratch import scratch_folder
from data.terminal import new_table
from models.zoo import ZOO, find, hub_cache, places, resolve
from pipeline.config import PipelineConfig
from pipeline.engine.exposure import is_loopback

__all__ = ["Check", "doctor_table", "examine"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "models", "data", "training")

INSTALL = how_to_install("pipeline")

# Distribution, what it is needed for, oldest version that is safe (specs/pipeline_and_shards §5.5).
LIBRARIES = (
    ("numpy", "everything", "1.26"),
    ("h5py", "the store", "3.13"),
    ("pydantic", "configuration", "2.7"),
    ("fsspec", "stores on object stores", "2025.3"),
    ("universal_pathlib", "stores on object stores", "0.3"),
    ("torch", "features, text encoders, training", "2.11"),
    ("ray", "stages on several processes or machines", "2.52"),
    ("av", "decoding", "14"),
    ("decord", "decoding, as a fallback", "0.6"),
    ("open_clip_torch", "stages clip, narratives and queries", "3.3"),
    ("transformers", "vision-language captioners", "5.0"),
    ("spacy", "sentences of captions in stage narratives", "3.8"),
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what.
        state: "ok", "warn" (something less will work) or "fail".
        found: what there is.
        advice: what to do; "" if nothing.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def examine(config: PipelineConfig | None = None) -> list[Check]:
    """Look at everything; no network, nothing is started.

    Args:
        config: whose stages' weights are looked for; None: only what lies where.
    """
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _packages,
        _libraries,
        _torch,
        _decoders,
        partial(_optional, config),
        _stages,
        _official_weights,
        partial(_weights_of_stages, config),
        partial(_captioner, config),
        _object_stores,
        _scratch,
        _ray,
    )
    return [check for part in parts for check in part()]


def doctor_table(checks: list[Check]) -> Table:
    """For a terminal."""
    table = new_table("Environment", "", "what", "found", "what to do")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for each in checks:
        state = Text(each.state, style=colours[each.state])
        table.add_row(state, each.name, each.found, each.advice)
    return table


def _python() -> Iterator[Check]:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    advice = "" if fits else "use Python 3.11 or 3.12"
    yield Check("Python", "ok" if fits else "fail", platform.python_version(), advice)


def _packages() -> Iterator[Check]:
    """The names are generic: another `data` or `models` on the path would be imported instead."""
    for name in PACKAGES:
        found = Path(importlib.import_module(name).__file__ or "").resolve()
        ours = found == ROOT / name / "__init__.py"
        advice = "" if ours else f"another package hides ours: remove it from PYTHONPATH ({ROOT})"
        yield Check(f"package {name}", "ok" if ours else "fail", str(found.parent), advice)


def _libraries() -> Iterator[Check]:
    for name, purpose, oldest in LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "warn", "not installed", f"needed for {purpose}: {INSTALL}")
            continue
        new_enough = _numbers(version) >= _numbers(oldest)
        advice = "" if new_enough else f"{oldest} or newer is needed for {purpose}"
        yield Check(name, "ok" if new_enough else "fail", version, advice)


def _numbers(version: str) -> tuple[int, ...]:
    digits = ("".join(c for c in part if c.isdigit()) for part in version.split("+")[0].split("."))
    return tuple(int(each or 0) for each in digits)[:3]


def _torch() -> Iterator[Check]:
    try:
        import torch

        from models.compat import ensure_torchvision
    except ImportError as error:
        yield Check("torch", "fail", f"cannot be imported: {error}", "install the pipeline extra")
        return
    gpus = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(gpus))
    advice = "" if gpus else "networks run on the CPU: slow, but the same results"
    yield Check("GPU", "ok" if gpus else "warn", names or "none", advice)
    state = ensure_torchvision()
    advices = {"absent": f"needed by open_clip and transformers: {INSTALL}"}
    told = {"stubbed": "present, its C library does not load beside this torch; not needed"}
    yield Check(
        "torchvision",
        "warn" if state == "absent" else "ok",
        told.get(state, state),
        advices.get(state, ""),
    )


def _decoders() -> Iterator[Check]:
    for name, role in (("av", "fail"), ("decord", "warn")):
        try:
            module = importlib.import_module(name)
        except Exception as error:
            state: Literal["fail", "warn"] = "fail" if role == "fail" else "warn"
            yield Check(f"decoder {name}", state, str(error), INSTALL)
        else:
            yield Check(f"decoder {name}", "ok", f"imports, {module.__version__}")


def _optional(config: PipelineConfig | None) -> Iterator[Check]:
    """Libraries of extras: amiss only where the config asks for them."""
    decoders = () if config is None else (config.decode.backend, *config.decode.fallbacks)
    flow = None if config is None else config.stage_options.get("i3d_flow")
    for what, module, attribute, extra, purpose, asked in (
        ("decoder torchcodec", "torchcodec", "", "torchcodec", "`decode.backend: torchcodec`",
         "torchcodec" in decoders),
        ("OpenCV's flow", "cv2", "optflow", "flow", "`flow: tvl1` of stage i3d_flow",
         getattr(flow, "flow", None) == "tvl1"),
    ):  # fmt: skip
        problem = _problem_of(module, attribute)
        found = problem or f"imports, {importlib.import_module(module).__version__}"
        advice = f"only for {purpose}: {how_to_install(extra)}" if problem else ""
        yield Check(what, "fail" if problem and asked else "ok", found, advice)


def _problem_of(module: str, attribute: str) -> str:
    """Why a library cannot be used; "" if it can."""
    if importlib.util.find_spec(module) is None:
        return "not installed"
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # whatever a library does when its own libraries are missing
        return f"does not load: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
    return "" if not attribute or hasattr(loaded, attribute) else f"lacks {module}.{attribute}"


def _stages() -> Iterator[Check]:
    from pipeline.stage import STAGES

    try:
        importlib.import_module("pipeline.stages")
    except Exception as error:
        yield Check("stages", "fail", f"{type(error).__name__}: {error}", "a package is missing")
    else:
        yield Check("stages", "ok", ", ".join(STAGES))


def _official_weights() -> Iterator[Check]:
    """Where downloaded weights lie; nothing is downloaded here."""
    found = [f"{name} ({at})" for name, entry in ZOO.items() if (at := find(entry)) is not None]
    looked = ", ".join(str(each) for each in places())
    yield Check(
        "official weights",
        "ok",
        ", ".join(found) or f"none in {looked}",
        "" if found else "random weights work; `pipeline weights list` names official ones",
    )
    models = sorted(each.name for each in hub_cache().glob("models--*"))
    shown = ", ".join(name.removeprefix("models--").replace("--", "/") for name in models)
    yield Check("models of Hugging Face", "ok", shown or f"none in {hub_cache()}")


def _weights_of_stages(config: PipelineConfig | None) -> Iterator[Check]:
    options = {} if config is None else config.stage_options
    sections = list(options.items())
    for name, section in options.items():
        others = getattr(section, "others", {})
        sections += [(f"{name}.others.{key}", each) for key, each in others.items()]
    for name, section in sections:
        seed = getattr(section, "seed", 0)
        told = _text_encoder(name, section)
        if told is not None:
            yield told
        elif hasattr(section, "checkpoint") and not _told_by_captioner(section):
            yield _weights_of(f"weights of {name}", section.checkpoint, seed)
        flow = getattr(section, "flow_checkpoint", None)
        if flow is not None:
            yield _weights_of(f"weights of {name}'s flow", flow, seed)


def _text_encoder(name: str, section: Any) -> Check | None:
    """The table of a text encoder, or what is wrong with the options of any; None: nothing."""
    from pipeline.stages.text import TextOptions

    if not isinstance(section, TextOptions):
        return None
    what = f"text encoder of {name}"
    try:
        told = section.told
    except UsageError as error:
        return Check(what, "fail", f"{section.encoder} cannot be used", str(error))
    return Check(what, "ok", told) if told else None


def _told_by_captioner(section: Any) -> bool:
    """Whether a section names a captioner that has no weights, or is itself asked about its files:
    which there are differs. One that nobody knows is told below.
    """
    from models.captioners import CAPTIONERS

    name = getattr(section, "captioner", None)
    if name is None or name not in CAPTIONERS:
        return name is not None
    return section.checkpoint is not None or not CAPTIONERS.get(name).has_weights


def _captioner(config: PipelineConfig | None) -> Iterator[Check]:
    """The captioner that a config names: its options, its prompt, what it needs of this machine; a
    server is asked whether it is there.
    """
    from pipeline.stages.captions import CaptionsOptions, CaptionsStage

    section = None if config is None else config.stage_options.get("captions")
    if config is None or not isinstance(section, CaptionsOptions):
        return
    what = f"captioner {section.captioner}"
    stage = CaptionsStage(config.context, section)
    try:
        stage.check_options()
        stage.check_machine()
        told = stage.told
    except UsageError as error:
        yield Check(what, "fail", "cannot be used", str(error))
        return
    yield Check(what, "warn" if stage.notice else "ok", told, stage.notice)


def _weights_of(what: str, checkpoint: Path | None, seed: int) -> Check:
    if checkpoint is None:
        return Check(what, "ok", f"random, seed {seed}", "untrained; name a checkpoint for others")
    try:
        from models.shards import weights_files

        files = weights_files(resolve(checkpoint))
        size = sum(file.stat().st_size for file in files)
    except (UsageError, OSError) as error:
        return Check(what, "fail", "not found", str(error))
    shards = f" and {len(files) - 1} shards" if len(files) > 1 else ""
    return Check(what, "ok", f"{files[0]}{shards} ({size / 1e6:,.1f} MB)")


def _object_stores() -> Iterator[Check]:
    """Optional, so that none of them is amiss where it is not asked for."""
    for scheme, extra, name in (("s3://", "s3", "s3fs"), ("gs://", "gs", "gcsfs")):
        try:
            found, advice = f"{name} {importlib.metadata.version(name)}", ""
        except importlib.metadata.PackageNotFoundError:
            found, advice = (
                f"{name} is not installed",
                f"only for {scheme}: {how_to_install(extra)}",
            )
        yield Check(f"stores on {scheme}", "ok", found, advice)


def _scratch() -> Iterator[Check]:
    """Where readers of remote stores keep copies of shards (docs/store.md)."""
    try:
        folder = scratch_folder()
        free = shutil.disk_usage(folder).free
    except (UsageError, OSError) as error:
        yield Check("local scratch", "warn", str(error), "needed for stores on object stores only")
        return
    at_most = os.environ.get("STORYLINE_SCRATCH_GB")
    limit = f"at most {at_most} GB" if at_most else "at most half of that"
    yield Check("local scratch", "ok", f"{folder}: {free / 1e9:,.0f} GB free, {limit} is used")


def _ray() -> Iterator[Check]:
    try:
        importlib.import_module("ray")
    except Exception as error:
        advice = f"{INSTALL}; or run with --executor inline"
        yield Check("Ray", "warn", f"{type(error).__name__}: {error}", advice)
        return
    yield _cluster(os.environ.get("RAY_ADDRESS"), os.environ.get("RAY_AUTH_MODE"))


def _cluster(address: str | None, auth: str | None) -> Check:
    """Whoever reaches a Ray cluster without token can run code on all of its machines."""
    if address is None:
        return Check("Ray cluster", "ok", "local, on loopback, without dashboard")
    if auth == "token":
        return Check("Ray cluster", "ok", f"RAY_ADDRESS={address}, with token")
    found = f"RAY_ADDRESS={address}, RAY_AUTH_MODE is not 'token'"
    if is_loopback(address):
        return Check("Ray cluster", "warn", found, "other users of this machine can run code on it")
    return Check(
        "Ray cluster",
        "fail",
        found,
        "anyone who reaches the cluster can run code on it: export RAY_AUTH_MODE=token, and start "
        "the cluster with the same token (docs/security.md)",
    )
