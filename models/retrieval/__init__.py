"""The retrieval family: models that find moments and highlights in a video by a query.

    model = create_model("qd_detr", video_dim=2818, text_dim=512)
    predictions = model(batch)
    losses = model.losses(batch, context)

Every module of this package and of `plugins` is imported here, so that a new model or plug-in is
one new file.
"""

from __future__ import annotations

import importlib
import pkgutil

from models.retrieval import plugins
from models.retrieval.build import (
    MODELS,
    PLUGINS,
    PRESETS,
    Preset,
    create_model,
    list_models,
    load_official,
)
from models.retrieval.model import RetrievalModel

__all__ = [
    "MODELS",
    "PLUGINS",
    "PRESETS",
    "Preset",
    "RetrievalModel",
    "create_model",
    "list_models",
    "load_official",
]

for _package, _path in ((__name__, __path__), (plugins.__name__, plugins.__path__)):
    for _module in pkgutil.iter_modules(_path):
        if not _module.ispkg:
            importlib.import_module(f"{_package}.{_module.name}")
