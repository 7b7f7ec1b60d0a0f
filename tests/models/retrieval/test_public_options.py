"""What a public checkpoint was trained with, under the names of the public `config.py`s, is what it
is trained with here: each at another value than its default, which would hide a name not read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.retrieval import MODELS, create_model
from models.retrieval.official import official_state_dict

# Moment-DETR's, which its forks keep; (ours, value) by the public name.
LINEAGE: dict[str, tuple[str, Any]] = {
    "dropout": ("dropout", 0.2),
    "input_dropout": ("input_dropout", 0.3),
    "aux_loss": ("aux_loss", False),
    "span_loss_coef": ("span_weight", 2.0),
    "giou_loss_coef": ("giou_weight", 3.0),
    "label_loss_coef": ("label_weight", 5.0),
    "lw_saliency": ("saliency_weight", 6.0),
    "eos_coef": ("background_weight", 0.3),
    "saliency_margin": ("margin", 0.4),
    "set_cost_span": ("cost_span", 7.0),
    "set_cost_giou": ("cost_giou", 11.0),
    "set_cost_class": ("cost_label", 9.0),
}
CG = {
    "lw_wattn": ("attention_weight", 2.5),
    "lw_ms_align": ("ms_align_weight", 3.5),
    "lw_distill": ("distill_weight", 4.5),
}
# The focal loss has no weight of the background; the dropouts of LD-DETR are built in.
FOCAL = {key: LINEAGE[key] for key in LINEAGE.keys() - {"eos_coef"}}
LD = {key: FOCAL[key] for key in FOCAL.keys() - {"dropout", "input_dropout"}}
OPTIONS: dict[str, dict[str, tuple[str, Any]]] = {
    "moment_detr": LINEAGE,
    "qd_detr": LINEAGE,
    "cg_detr": LINEAGE | CG,
    "llmepet": LINEAGE | CG,
    "tr_detr": FOCAL
    | {"VTC_loss_coef": ("video_text_weight", 0.7), "CTC_loss_coef": ("clip_text_weight", 0.8)},
    "eatr": LINEAGE | {"num_slot_iter": ("slot_iterations", 2), "event_coef": ("event_weight", 4)},
    "bm_detr": {key: LINEAGE[key] for key in LINEAGE.keys() - {"aux_loss"}}
    | {
        "lw_contrastive_loss_coef": ("contrast_weight", 1.5),
        "temperature": ("temperature", 0.5),
        "lw_prob_loss_coef": ("guidance_weight", 2.5),
        "prob_thd": ("guidance_goal", 0.9),
        "class_loss_coef": ("label_error_weight", 0.6),
    },
    "uvcom": LINEAGE
    | {
        "em_iter": ("mean_rounds", 3),
        "sim_loss_coef": ("similarity_weight", 0.6),
        "neg_choose_epoch": ("choose_epoch", 40),
    },
    "ld_detr": LD
    | {
        "distillation_coefficient": ("alpha", 0.3),
        "align_loss_coef": ("align_weight", 0.7),
        "sim_loss_coef": ("sim_weight", 0.8),
    },
    "univtg": {
        "dropout": ("dropout", 0.2),
        "droppath": ("drop_path", 0.3),
        "input_dropout": ("input_dropout", 0.4),
        "b_loss_coef": ("span_weight", 2.0),
        "g_loss_coef": ("giou_weight", 3.0),
        "f_loss_coef": ("label_weight", 5.0),
        "eos_coef": ("background_weight", 0.3),
        "s_loss_inter_coef": ("inter_weight", 0.6),
        "s_loss_intra_coef": ("intra_weight", 0.7),
        "clip_length": ("clip_len_s", 1.0),
    },
    "emb": {
        "drop_rate": ("dropout", 0.3),
        "min_iou": ("target_low", 0.2),
        "max_iou": ("target_high", 0.8),
        "threshold": ("elastic_low", 0.6),
        "epochs": ("epochs", 30),
        "extend": ("highlight_extend", 0.2),
        "highlight_lambda": ("highlight_weight", 3.0),
        "rank_lambda": ("proposal_weight", 2.0),
    },
}
NARROW: dict[str, Any] = {
    "hidden": 16,
    "heads": 2,
    "feedforward": 24,
    "queue_length": 8,
    "words": "ids",
    "vocabulary": 5,
    "llm_width": 32,
    "llm_heads": 4,
    "llm_hidden": 48,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_public_options_bring_their_values(name: str) -> None:
    family = MODELS.get(name)
    small = {key: x for key, x in NARROW.items() if key in family.options.model_fields}
    torch.manual_seed(0)
    model = create_model(name, video_dim=18, text_dim=12, preset="release", **small)
    state = official_state_dict(model, family.official)
    assert all(model.recipe[ours] != value for ours, value in OPTIONS[name].values())
    public = {theirs: value for theirs, (_, value) in OPTIONS[name].items()}
    found = family.official.options(public, state)
    assert {ours: found[ours] for ours, _ in OPTIONS[name].values()} == dict(OPTIONS[name].values())


def test_one_public_weight_of_cg_detr_is_that_of_two_losses() -> None:
    """`lw_distill` weighs the attention that follows the likeness and the differing dummies."""
    family = MODELS.get("cg_detr")
    model = create_model("cg_detr", video_dim=18, text_dim=12, preset="release", hidden=16, heads=2)
    state = official_state_dict(model, family.official)
    assert family.official.options({"lw_distill": 4.5}, state)["orthogonal_weight"] == 4.5


def test_every_base_with_public_code_is_listed_here() -> None:
    assert {*OPTIONS, "lmr"} == {*MODELS}
