"""TACoS (Regneri et al., TACL 2013, https://aclanthology.org/Q13-1003; split of Gao et al., TALL,
ICCV 2017, https://arxiv.org/abs/1705.02101).

`{train,val,test}.json` of the original split count in frames; conversions to JSONL (CG-DETR,
Lighthouse) count in seconds and cut moments at the end of the video. Both have 75 / 27 / 25 videos
and 9,790 / 4,436 / 4,001 queries; 567 rows of the test file are there twice. Ids are `V_i` in both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.annotations.formats import DATASETS, PostProcessing, Record, Sample
from data.annotations.published import Published, Row, has_rows, read_rows
from data.annotations.videos import Sentence, read_sentences

__all__ = ["Tacos"]


@dataclass(frozen=True)
class Filmed(Sentence):
    """A sentence of `{video.avi: {timestamps, fps, num_frames, sentences}}`, in frames.

    Seconds are frames / `fps`, the length is `num_frames` / `fps`, as in the conversions.
    """

    def name_of_video(self) -> str:
        """`s30-d52.avi` is video `s30-d52`."""
        return self.video.removesuffix(".avi")

    def duration_s(self) -> Any:
        """Frames over frames per second."""
        return self._frames("num_frames") / self._fps()

    def window_s(self) -> Any:
        """Frames over frames per second."""
        [window] = self.pairs([super().window_s()], "relevant_windows")
        return [frame / self._fps() for frame in window]

    def _fps(self) -> float:
        fps = self._frames("fps")
        if fps <= 0:
            self.refuse(f"'fps' must be above 0, got {fps:g}")
        return fps

    def _frames(self, name: str) -> float:
        if name not in self.entry:
            self.refuse(f"lacks '{name}'; the video has {sorted(self.entry)}")
        return self.number(self.entry[name], name)


class Tacos(Published):
    """Frames by video, or rows. Predictions are rounded and not clamped (CG-DETR)."""

    name = "tacos"
    clip_len_s: float | None = 2.0
    post = PostProcessing(round_to_s=2.0)
    metrics: tuple[str, ...] = ("mr_hd", "tsg")

    def records(self, path: Path) -> Iterable[Record]:
        """The queries of a file of either form."""
        return read_rows(path, Row) if has_rows(path) else read_sentences(path, Filmed)

    def claims(self, sample: Sample) -> bool:
        """Captions in frames."""
        return sample.form == "videos" and {"num_frames", "sentences"} <= sample.fields


DATASETS.register(Tacos.name)(Tacos())
