"""ActivityNet-CD (Yuan et al., 2021, https://arxiv.org/abs/2101.09028): ActivityNet Captions split
anew, so that moments of `test_ood` lie elsewhere in their videos than those of training.

`anet_{train,val,test_iid,test_ood}.json` of yytzsy/grounding_changing_distribution: 10,984 / 746 /
746 / 2,450 videos, 51,415 / 3,521 / 3,443 / 13,578 queries. The public copies lack the train file.
It is what the three files of ActivityNet Captions hold of other videos than the other three files
of ActivityNet-CD (see `data.annotations.join`).
"""

from __future__ import annotations

from data.annotations.activitynet_captions import ActivityNetCaptions
from data.annotations.formats import DATASETS, PostProcessing

__all__ = ["ActivityNetCD"]


class ActivityNetCD(ActivityNetCaptions):
    """Files as those of ActivityNet Captions; the evaluators of its papers do not round."""

    name = "activitynet_cd"
    post = PostProcessing()
    metrics: tuple[str, ...] = ("tsg", "tsg_discounted", "mr_hd")


DATASETS.register(ActivityNetCD.name)(ActivityNetCD())
