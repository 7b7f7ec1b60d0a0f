"""Checkpoints in the layout of public code, for the features of the small store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from small_store import WIDTH

from models.retrieval import MODELS, RetrievalModel, create_model
from models.retrieval.official import official_state_dict

PUBLIC = {
    "hidden_dim": 16,
    "nheads": 2,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 4,
    "dropout": 0.1,
    "input_dropout": 0.5,
    "n_input_proj": 2,
    "max_q_l": 32,
    "max_v_l": 75,
    "clip_length": 2,
    "ctx_mode": "video_tef",
    "no_norm_vfeat": False,
    "position_embedding": "sine",
    "v_feat_dirs": ["../features/slowfast_features", "../features/clip_features/"],
    "lr": 1e-4,
}


def trained(name: str, **options: Any) -> RetrievalModel:
    """A model for the small store, as its public code would have trained it."""
    torch.manual_seed(5)
    return create_model(
        name,
        video_dim=WIDTH + 2,
        text_dim=WIDTH,
        preset="release",
        hidden=16,
        heads=2,
        feedforward=32,
        encoder_layers=1,
        queries=4,
        **options,
    )


def write(path: Path, model: RetrievalModel, **public: Any) -> Path:
    """Its checkpoint as public code writes one; `public` replaces options."""
    layout = MODELS.get(model.recipe["name"]).official
    options = argparse.Namespace(**(PUBLIC | public))
    weights = {f"module.{k}": x for k, x in official_state_dict(model, layout).items()}
    torch.save({"model": weights, "opt": options, "epoch": 3}, path)
    return path
