"""ActivityNet-CG (Li et al., CVPR 2022, https://arxiv.org/abs/2203.13049): ActivityNet Captions
split anew, so that words, or compositions of known words, of the test queries are new.

`{train,test_trivial,novel_composition,novel_word}.json` of YYJMJC/Compositional-Temporal-Grounding:
9,659 / 4,775 / 4,202 / 1,991 videos, 36,724 / 15,712 / 12,028 / 3,920 queries. The paper's table
has 2,011 videos and 3,944 queries of novel words; the released file has not.
"""

from __future__ import annotations

from data.annotations.charades_cg import CharadesCG
from data.annotations.formats import DATASETS, Sample

__all__ = ["ActivityNetCG"]


class ActivityNetCG(CharadesCG):
    """Files as those of Charades-CG."""

    name = "activitynet_cg"
    clip_len_s: float | None = 2.0

    def claims(self, sample: Sample) -> bool:
        """Captions of videos called `v_…`, with novelties or without."""
        return sample.is_captions and sample.video_id.startswith("v_")


DATASETS.register(ActivityNetCG.name)(ActivityNetCG())
