"""The report: words from outside are words in it, and it loads nothing from elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from short_film import film

from data.annotations.types import Annotation
from data.errors import UsageError
from data.grid import Grid
from data.store import ItemKey, Recipe, Row, Schema, Store, StreamSpec
from data.store.records import CatalogueEntry
from data.video import open_decoder
from pipeline.report import report_of_runs, write_report
from pipeline.report.collect import history_lines, read_metrics, read_predictions

pytest.importorskip("jinja2")

EVIL = (
    "</title></svg></style><script>alert(1)</script>"
    "<img src=http://e.vil/x onerror='a()'>\"&{{7*7}}"
)


class Page(HTMLParser):
    """Collects tags, attributes and where they point."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def run_folder(folder: Path) -> Path:
    brief = {"MR-full-R1@0.5": 50.0}
    (folder / "predictions").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"best": {"brief": brief}}))
    row = {"epoch": 1, "losses": {"l": 1.0}, "val": brief}
    (folder / "history.jsonl").write_text(json.dumps(row) + "\n")
    row = {"qid": 1, "query": EVIL, "vid": "v", "pred_relevant_windows": [[0, 2, 0.9]]}
    (folder / "predictions" / "val-best.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_a_report_of_hostile_words_holds_them_as_words(tmp_path: Path) -> None:
    video = film(tmp_path / "v.mp4", name="v", fps=4, frames=16)
    store = Store.create(tmp_path / "store", dataset="tiny", clip_len_s=2.0)
    content = hashlib.sha256(b"v").hexdigest()
    store.update_catalogue([CatalogueEntry("v", content, open_decoder("pyav").probe(video))])
    store.save_annotations("val", [Annotation(1, EVIL, "v", 4.0, ((0.0, 2.0),))])
    schema = Schema({"time_s": StreamSpec((), "float64", "item")}, ("caption",))
    recipe = Recipe("captions", 1, {"weights": {"kind": EVIL}}, {}, schema)
    with store.writer(recipe) as writer:
        arrays = {"time_s": np.array([0.5])}
        writer.add(Row(ItemKey("v", content), Grid(4.0, 2.0), arrays, {"caption": [EVIL]}))
    store.set_current({"captions": recipe.id})
    run = run_folder(tmp_path / EVIL.replace("/", "_"))
    write_report(report_of_runs(store, [video], [run], [], None, 3), tmp_path / "report.html")

    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "".join(page.words).count(EVIL) >= 3  # query, caption, kind of weights
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    sources = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert len(sources) == 10
    assert all(value and value.startswith("data:image/jpeg;base64,") for value in sources)
    assert "url(" not in (Path(__file__).parents[2] / "pipeline/report/report.css").read_text()
    assert re.search(r'http-equiv="Content-Security-Policy" content="default-src \'none\'', text)


@pytest.mark.parametrize(
    "line",
    [
        '{"qid": 1}',
        '{"qid": 1, "pred_relevant_windows": [[0, 1]]}',
        '{"qid": 1, "pred_relevant_windows": [[0, 1, "</text><script>"]]}',
        '{"qid": 1, "pred_relevant_windows": [[0, 1, NaN]]}',
        '{"qid": 1, "pred_relevant_windows": [], "pred_saliency_scores": ["x"]}',
        '{"qid": 1, "qid": 2, "pred_relevant_windows": []}',
        "[" * 100_000,
        "x",
    ],
)
def test_predictions_that_are_none_are_a_sentence(line: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError, match=r"p\.jsonl, line 1"):
        read_predictions(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"best": 3}', '{"brief": []}', '{"brief": {"MR-full-mAP": "<b>"}}']
)
def test_scores_that_are_none_are_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UsageError, match=r"metrics\.json"):
        read_metrics(tmp_path / "metrics.json", "a", "", "")


@pytest.mark.parametrize(
    "line", ["{}", '{"epoch": "1", "losses": {}}', '{"epoch": 1, "losses": 3}']
)
def test_a_history_that_is_none_is_a_sentence(line: str, tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError, match=r"history\.jsonl, line 1"):
        history_lines(tmp_path, "a")
