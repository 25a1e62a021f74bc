"""Results as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from configs.base.published import SCALES, Result, corpus_parts
from recog.wer import format_table

__all__ = ["csv_table", "format_wer", "pivot_tables", "tables"]

INVALID = "†"


def format_wer(value: float | None) -> str:
    """:return: with two decimals, or one if the second is 0 (or was not published); "-" if there is none"""
    return "-" if value is None else max(f"{value:.1f}", f"{round(value, 2):g}", key=len)


def tables(results: Iterable[Result], *, markdown: bool = False, sources: bool = False) -> str:
    """
    :param results:
    :param markdown: instead of plain text
    :param sources: with a column that says where the numbers are from
    :return: a table for each corpus and kind, below each why some of its rows are invalid
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for row in results:
        groups.setdefault((row.corpus, row.kind), []).append(row)
    return "\n\n".join(
        _title(f"{corpus}, {kind}", markdown) + _table(corpus, rows, markdown=markdown, sources=sources)
        for (corpus, kind), rows in groups.items()
    )


def _title(text: str, markdown: bool) -> str:
    return f"**{text}** (WER %)\n\n" if markdown else f"{text} (WER %)\n"


def _table(corpus: str, rows: Sequence[Result], *, markdown: bool, sources: bool) -> str:
    """:return: table of rows of one corpus; columns in which nothing stands are left out"""
    parts = [part for part in corpus_parts(corpus) if any(part in row.wer for row in rows)]
    scales = [name for name in SCALES if any(name in row.scales for row in rows)]
    texts = ["recipe", "model"]
    if any(row.ctc_model for row in rows):
        texts.append("CTC of")
    if any(row.lm for row in rows):
        texts.append("LM")
    numbers = [*scales, *(["beam"] if any(row.beams for row in rows) else []), *parts]
    cells = []
    for row in rows:
        values = {
            "recipe": row.recipe,
            "model": row.model,
            "CTC of": row.ctc_model or "-",
            "LM": row.lm or "-",
            "beam": "/".join(map(str, row.beams)) or "-",
            **{name: f"{row.scales[name]:g}" if name in row.scales else "-" for name in scales},
            **{part: format_wer(row.wer.get(part)) for part in parts},
        }
        if row.invalid:
            values |= {part: values[part] + INVALID for part in parts if part in row.wer}
        cells.append([values[name] for name in [*texts, *numbers]])
    header = [*texts, *numbers]
    if any(_remarks(row) for row in rows):
        header.append("remarks")
        cells = [[*line, _remarks(row) or "-"] for line, row in zip(cells, rows, strict=True)]
    if sources:
        header.append("source")
        cells = [[*line, row.source] for line, row in zip(cells, rows, strict=True)]
    table = _text_right(header, cells, num_text=len(texts), num_numbers=len(numbers), markdown=markdown)
    return "\n".join([table, *_footnotes(rows, markdown=markdown)])


def _remarks(row: Result) -> str:
    """:return: what must be known beside the numbers"""
    remarks = [f"scales in the source: {row.candidates}" if row.candidates else "", row.note or ""]
    if row.measured:
        remarks.append(f"measured {row.date}")
    return "; ".join(text for text in remarks if text)


def _text_right(
    header: Sequence[str], cells: Sequence[Sequence[str]], *, num_text: int, num_numbers: int, markdown: bool
) -> str:
    """:return: table whose last columns, behind the numbers, are text again"""
    end = num_text + num_numbers
    # format_table aligns all that is behind the first columns to the right: bring the text to one width before.
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    pad = [[*line[:end], *(cell.ljust(widths[i + end]) for i, cell in enumerate(line[end:]))] for line in cells]
    head = [*header[:end], *(cell.ljust(widths[i + end]) for i, cell in enumerate(header[end:]))]
    table = format_table(head, pad, num_text_columns=num_text, markdown=markdown)
    if markdown:
        lines = table.split("\n")
        rule = lines[1].split(" | ")
        lines[1] = " | ".join([*rule[:end], *(cell.replace("-:", "--") for cell in rule[end:])])
        table = "\n".join(lines)
    return table


def _footnotes(rows: Iterable[Result], *, markdown: bool) -> list[str]:
    """:return: lines"""
    reasons = list(dict.fromkeys(row.invalid for row in rows if row.invalid))
    return [*([""] if markdown and reasons else []), *(f"{INVALID} invalid: {reason}." for reason in reasons)]


def pivot_tables(results: Iterable[Result], *, markdown: bool = False) -> str:
    """
    :param results:
    :param markdown: instead of plain text
    :return: for each corpus, a table with models as rows and recipes as columns; cells: "scales -> WERs"
    """
    groups: dict[str, list[Result]] = {}
    for row in results:
        groups.setdefault(row.corpus, []).append(row)
    texts = []
    for corpus, rows in groups.items():
        recipes, models = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("recipe", "model"))
        cells = {(row.model, row.recipe): _cell(row) for row in rows}  # a measured row replaces the published one
        lines = [[model, *(cells.get((model, recipe), "-") for recipe in recipes)] for model in models]
        header = ["model", *recipes]
        table = format_table(header, lines, num_text_columns=len(header), markdown=markdown)
        parts = [part for part in corpus_parts(corpus) if any(part in row.wer for row in rows)]
        title = _title(f"{corpus}: scales ({', '.join(SCALES)}, those that are used) : {' / '.join(parts)}", markdown)
        texts.append("\n".join([title + table, *_footnotes(rows, markdown=markdown)]))
    return "\n\n".join(texts)


def _cell(row: Result) -> str:
    scales = ",".join(f"{row.scales[name]:g}" for name in SCALES if name in row.scales)
    wers = "/".join(format_wer(row.wer.get(part)) for part in corpus_parts(row.corpus) if part in row.wer) or "-"
    return (f"{scales} : " if scales else "") + wers + (INVALID if row.invalid else "")


def csv_table(results: Iterable[Result]) -> str:
    """:return: all fields of all rows, for spreadsheets; the columns do not depend on the rows"""
    parts = list(dict.fromkeys(part for corpus in ("librispeech", "tedlium2") for part in corpus_parts(corpus)))
    fields = "corpus kind recipe model search lm ilm ctc_model".split()
    tail = "candidates invalid note command date machine source".split()
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*fields, *(f"{n}_scale" for n in SCALES), "beams", *(f"wer_{part}" for part in parts), *tail])
    for row in results:
        writer.writerow(
            [
                *(getattr(row, name) for name in fields),
                *(row.scales.get(name) for name in SCALES),
                "/".join(map(str, row.beams)),
                *(row.wer.get(part) for part in parts),
                *(getattr(row, name) for name in tail),
            ]
        )
    return file.getvalue()
