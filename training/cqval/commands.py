"""`trainer cqval build|fit|report` (docs/cqval.md).

Exit codes: 0 done; 2 wrong usage, no parser, or files that do not belong together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from data.commands import program
from data.errors import UsageError
from data.terminal import new_table, plain_console

# the sources register themselves; none of them imports a parser before it is asked to
from training.checks import clip_len_of
from training.cqval import (  # noqa: F401
    conllu_source,
    heuristic_source,
    sidecar_source,
    spacy_source,
)
from training.cqval.build import Queries, Splits, build, read_splits, write_splits
from training.cqval.fit import Fit, fit, read_preset, write_preset
from training.cqval.parses import PARSERS, Parses
from training.cqval.published import DATASET, PUBLISHED_SIZES, TABLE_IV, THRESHOLDS
from training.cqval.report import HITS, Report, report
from training.metrics.uncertainty import Resampling
from training.options import (
    ModeOption,
    answered,
    check_writable,
    console_beside,
    tell,
    tell_written,
    write_json,
)
from training.predictions import read_predictions

__all__ = ["cqval_commands"]

cqval_commands = program(
    "cqval", "C-QVal: splits of complex queries of QVHighlights val, as LMR reports on them."
)

AnnotationsArgument = Annotated[Path, typer.Argument(help="The annotation file.")]
DatasetOption = Annotated[str, typer.Option("--dataset", help="In whose format it is.")]
ParserOption = Annotated[
    str,
    typer.Option("--parser", help=f"Where clauses come from: {', '.join(PARSERS)}."),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="spaCy pipeline: a package or a folder. Default: en_core_web_sm."),
]
ParsesOption = Annotated[
    Path | None, typer.Option("--parses", help="CoNLL-U file, '# qid = ...' above each sentence.")
]
CountsOption = Annotated[
    Path | None, typer.Option("--counts", help="JSON file {qid: number of clauses}.")
]


@cqval_commands.command("build")
@answered
def build_command(
    annotations: AnnotationsArgument,
    out: Annotated[Path, typer.Option("--out", help="Split file (JSON) to write.")],
    parser: ParserOption = "spacy",
    model: ModelOption = None,
    parses: ParsesOption = None,
    counts: CountsOption = None,
    labels: Annotated[
        str | None,
        typer.Option("--clause-labels", help="Dependencies that are clauses: acl,advcl,..."),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            "--words",
            help="split (default), or tokens of the parse: alphabetic, no-punctuation, tokens.",
        ),
    ] = None,
    preset: Annotated[
        Path | None, typer.Option("--preset", help="Labels and words as `fit --out` wrote them.")
    ] = None,
    dataset: DatasetOption = DATASET,
) -> None:
    """Make the twelve splits and write them to a file."""
    check_writable("--out", out)
    if preset is not None and (labels is not None or words is not None):
        raise UsageError("--preset says labels and words; leave out --clause-labels and --words")
    chosen = read_preset(preset) if preset is not None else None
    queries = Queries.read(annotations, dataset)
    found = _parsed(queries, parser, model, parses, counts)
    if chosen is not None:
        splits = build(queries, found, chosen.labels, chosen.words)
        splits = splits.with_remarks(chosen.remarks(found))
    else:
        asked = None if labels is None else labels.split(",")
        splits = build(queries, found, asked, words or "split")
    write_splits(out, splits)
    console = plain_console()
    _show_splits(console, splits)
    tell(console, f"the splits are in {out}")


@cqval_commands.command("fit")
@answered
def fit_command(
    annotations: AnnotationsArgument,
    parser: ParserOption = "spacy",
    model: ModelOption = None,
    parses: ParsesOption = None,
    counts: CountsOption = None,
    candidates: Annotated[
        str | None,
        typer.Option("--candidates", help="Labels whose sets are compared, at most 16."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many rules to show.")] = 10,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the best rule here, for build --preset.")
    ] = None,
    dataset: DatasetOption = DATASET,
) -> None:
    """Rank all label sets and word rules by the sizes that LMR published."""
    check_writable("--out", out)
    queries = Queries.read(annotations, dataset)
    found = _parsed(queries, parser, model, parses, counts)
    ranking = fit(queries, found, candidates.split(",") if candidates is not None else None)
    console = plain_console()
    _show_fit(console, ranking, top)
    for remark in (*found.remarks, *ranking.remarks()):
        tell(console, f"note: {remark}")
    if out is not None:
        write_preset(out, ranking, found, queries)
        tell(console, f"the first rule is in {out}")


@cqval_commands.command("report")
@answered
def report_command(
    predictions: Annotated[Path, typer.Argument(help="Predictions for all queries.")],
    splits: Annotated[Path, typer.Option("--splits", help="Split file of `build`.")],
    annotations: Annotated[
        Path, typer.Option("--annotations", help="The file that the splits were made of.")
    ],
    mode: ModeOption = None,
    ci: Annotated[
        bool, typer.Option("--ci", help="95 % intervals: videos are drawn again 2,000 times.")
    ] = False,
    show: Annotated[
        str, typer.Option("--show", help="Metrics: R1@0.5, R5@0.7, mAP@average, mIoU, ...")
    ] = ",".join(TABLE_IV),
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Also write all scores of all splits here; - is stdout."),
    ] = None,
) -> None:
    """Score predictions on the twelve splits, beside LMR's Table IV."""
    check_writable("--json", json_path)
    loaded = read_splits(splits)
    queries = Queries.read(annotations, loaded.dataset)
    found = report(
        loaded,
        queries,
        read_predictions(predictions, queries.annotations),
        clip_len_s=clip_len_of(annotations, loaded.dataset),
        mode=mode or "official",
        metrics=[each.strip() for each in show.split(",")],
        resampling=Resampling() if ci else None,
    )
    console = console_beside(json_path)
    if json_path is not None:
        write_json(json_path, {"predictions": predictions.name, **found.to_json()})
    _show_report(console, found, str(predictions))
    tell_written(console, "all scores are in", json_path)


def _parsed(
    queries: Queries, parser: str, model: str | None, parses: Path | None, counts: Path | None
) -> Parses:
    source = PARSERS.get(parser)
    given = {"--model": model, "--parses": parses, "--counts": counts}
    for option, value in given.items():
        if value is not None and option != source.option:
            raise UsageError(
                f"{option} does not go with --parser {parser}; {_takes(source.option)}"
            )
    value = given.get(source.option or "")
    chosen = source.default if value is None else str(value)
    if source.option is not None and chosen is None:
        raise UsageError(f"--parser {parser} needs {source.option}")
    return source(queries.annotations, chosen)


def _takes(option: str | None) -> str:
    return f"it takes {option}" if option else "it takes no file"


def _show_splits(console: Console, splits: Splits) -> None:
    table = new_table(
        f"{splits.name}: {splits.parser['source']} {splits.parser.get('name', '')}".rstrip(),
        *("clauses>", "words>", "queries>", "published>", "difference>"),
    )
    differences = splits.deltas
    for i, least in enumerate(THRESHOLDS):
        published = ("-", "-")
        if differences is not None:
            published = (str(PUBLISHED_SIZES[i]), f"{differences[i]:+d}")
        table.add_row(
            f"{least.clauses} or more", f"{least.words} or more", str(splits.sizes[i]), *published
        )
    console.print(table)
    if splits.clause_labels is not None:
        tell(console, f"clauses: {', '.join(splits.clause_labels)}; words: {splits.word_rule}")
    if differences is None:
        tell(
            console, "note: these are not the queries of QVHighlights val: no sizes were published"
        )
    for remark in splits.remarks:
        tell(console, f"note: {remark}")


def _show_fit(console: Console, found: Fit, top: int) -> None:
    table = new_table(
        f"{len(found.rules):,} rules against the 12 sizes of LMR",
        *("labels", "words", "exact>", "sum of errors>", "mean error>"),
    )
    for rule in found.rules[:top]:
        table.add_row(
            " ".join(rule.labels),
            rule.words,
            f"{rule.exact}/12",
            str(rule.absolute),
            f"{rule.relative:.1%}",
        )
    console.print(table)
    tell(console, f"candidates: {', '.join(found.candidates)}")
    for place, rule in enumerate(found.rules[: min(top, 3)], start=1):
        signed = " ".join(f"{each:+d}" for each in rule.residuals)
        tell(console, f"{place}. sizes {' '.join(map(str, rule.sizes))}; differences {signed}")


def _show_report(console: Console, found: Report, title: str) -> None:
    tell(console, f"{title} on {found.splits.name} ({found.mode} metrics, percent)")
    for metric in found.metrics:
        console.print(_metric_table(found, metric))
    if set(found.metrics) & set(TABLE_IV):
        tell(console, _selection(found))
    for remark in found.splits.remarks:
        tell(console, f"note: {remark}")


def _selection(found: Report) -> str:
    if found.same_sizes:
        return "QD-DETR, LMR: LMR's Table IV, same sizes; whether the same queries is not known"
    return (
        "* LMR's Table IV, on another selection of queries: its sizes differ from these, so do not "
        "compare the numbers"
    )


def _metric_table(found: Report, metric: str) -> Table:
    theirs = TABLE_IV.get(metric, {})
    hits = ("hits>",) if metric == HITS else ()
    interval = ("95 %>",) if found.resampling else ()
    marks = ("their n>",) if theirs else ()
    named = (f"{model}{'' if found.same_sizes else '*'}>" for model in theirs)
    table = new_table(metric, "split", "n>", *hits, f"{metric}>", *interval, *marks, *named)
    for i, row in enumerate(found.rows):
        cells = [str(row.least), str(row.queries)]
        cells += [_cell(row.hits, "d")] if hits else []
        cells += [_cell(row.percent[metric])]
        if interval:
            ends = row.intervals.get(metric)
            cells += ["-" if ends is None else f"{ends[0]:.1f}–{ends[1]:.1f}"]
        cells += [str(PUBLISHED_SIZES[i])] if theirs else []
        table.add_row(*cells, *(_cell(values[i]) for values in theirs.values()))
    blank = [""] * (len(interval) + len(marks))
    means = [_cell(sum(values) / len(values)) for values in theirs.values()]
    table.add_row("mean", "", *([""] * len(hits)), _cell(found.average(metric)), *blank, *means)
    return table


def _cell(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
