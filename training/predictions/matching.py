"""Predictions beside the queries that they answer: all of them, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from data.annotations.types import Annotation
from data.errors import UsageError, some
from training.predictions.types import Prediction

__all__ = ["in_order", "letters", "order_note", "retyped", "unsorted"]

Qid = int | str


def in_order(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    where: str = "the predictions",
) -> list[Prediction]:
    """The predictions in the order of the annotations, exactly one for each query.

    Args:
        annotations: the queries.
        predictions: in any order.
        where: their file, for messages.

    Raises:
        UsageError: a query is missing, unknown, answered twice, or about another video. A part of
            the queries is never scored as if it were the whole.
    """
    by_qid = {each.qid: each for each in predictions}
    wanted = {each.qid: each for each in annotations}
    found = [
        f"{len(qids)} {text} ({some([f'qid {qid}' for qid in qids], 3)})"
        for text, qids in _faults(wanted, by_qid, predictions).items()
        if qids
    ]
    if found:
        hint = (
            _of_other_type(wanted, by_qid)
            or _of_other_split(wanted, by_qid)
            or "Give the predictions and the annotations of the same split"
        )
        raise UsageError(
            f"{where} and the annotations do not match: of {len(wanted)} queries, "
            f"{'; '.join(found)}. {hint}"
        )
    return [by_qid[each.qid] for each in annotations]


def _faults(
    wanted: Mapping[Qid, Annotation],
    given: Mapping[Qid, Prediction],
    predictions: Sequence[Prediction],
) -> dict[str, list[Qid]]:
    """Queries by what is wrong with their answers."""
    both = [(qid, each, wanted[qid]) for qid, each in given.items() if qid in wanted]
    counts = Counter(each.qid for each in predictions)
    return {
        "are missing from the predictions": [qid for qid in wanted if qid not in given],
        "are in the predictions but not in the annotations": [q for q in given if q not in wanted],
        "are answered more than once": [qid for qid, count in counts.items() if count > 1],
        "are about another video than in the annotations": [
            qid for qid, each, query in both if each.video_id and each.video_id != query.video_id
        ],
        # beside a video id, a sentence in other spelling is no other query
        "ask another sentence than in the annotations": [
            qid
            for qid, each, query in both
            if not each.video_id and each.query and letters(each.query) != letters(query.query)
        ],
    }


def retyped(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction]
) -> tuple[list[Prediction], int]:
    """The predictions with ids of the type that the annotations have, and how many changed.

    An id that is in the annotations stays; of the others, "2579" becomes 2579 or the other way
    round where that is in the annotations. Ids that are in neither way stay, for `in_order`.
    """
    known = {each.qid for each in annotations}
    by_text = {str(qid): qid for qid in known}
    ambiguous = len(by_text) < len(known)
    found = [
        each
        if each.qid in known or ambiguous
        else replace(each, qid=by_text.get(str(each.qid), each.qid))
        for each in predictions
    ]
    changed = sum(a.qid != b.qid for a, b in zip(predictions, found, strict=True))
    return found, changed


def unsorted(predictions: Sequence[Prediction]) -> list[Qid]:
    """Queries whose windows are not listed best first: evaluators that look at the first window of
    the list then look at another than the best."""
    return [
        each.qid
        for each in predictions
        if any(a[2] < b[2] for a, b in zip(each.windows, each.windows[1:], strict=False))
    ]


def order_note(predictions: Sequence[Prediction]) -> str | None:
    """A sentence about windows that are not listed best first; None if all are."""
    wrong = unsorted(predictions)
    if not wrong:
        return None
    return (
        f"{len(wrong):,} of {len(predictions):,} queries do not list their best window first "
        f"({some([f'qid {qid}' for qid in wrong], 3)}); official R1, R5 and mIoU look at the "
        "windows that are listed first"
    )


def letters(sentence: str) -> str:
    """The letters and digits of a sentence in one case: tools change points, spaces and capitals
    before they write it."""
    return "".join(sign for sign in sentence.casefold() if sign.isalnum())


def _of_other_split(wanted: Mapping[Qid, object], given: Mapping[Qid, object]) -> str | None:
    if given.keys() & wanted.keys():
        return None
    return f"None of the {len(wanted):,} query ids match: are these predictions of another split?"


def _of_other_type(wanted: Mapping[Qid, object], given: Mapping[Qid, object]) -> str | None:
    if given.keys() & wanted.keys() or not {*map(str, given)} & {*map(str, wanted)}:
        return None
    ours, theirs = next(iter(wanted)), next(iter(given))
    return (
        f"The ids differ in type: the annotations have {ours!r}, the predictions {theirs!r}. "
        "`trainer convert` with --annotations and --dataset writes the file with the ids of the "
        "annotations"
    )
