#!/usr/bin/env python3
"""
Markdown tables of all configs, one for each corpus, from the descriptions they open with: what each runs and needs.

  python tools/config_table.py            print it
  python tools/config_table.py --update   put it into README.md, between the configs markers
"""

from __future__ import annotations

import ast
import glob
import os
import re
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.nbest import open_text_for_writing
from tools.cli import make_parser

__all__ = ["Description", "config_table", "description", "main", "with_table"]

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CORPORA = {"demo": "Demo", "ls960": "LibriSpeech", "ted2": "TED-LIUM 2"}
"""What names of configs begin with -> corpus, as their descriptions begin"""
_MARKERS = re.compile(r"(<!-- configs -->\n).*?(<!-- /configs -->)", re.DOTALL)


@dataclass(frozen=True)
class Description:
    """What a config opens with."""

    what: str
    """What it runs: the first paragraph, without the corpus that it begins with."""
    needs: str
    """The rest of the sentence "Needs ..."; empty: it does not say"""
    gives: str
    """The rest of the sentence "Gives ..." """


def description(filename: str) -> Description:
    """
    :param filename: config
    :raises ValueError: it has no description, or that does not say what the config gives
    """
    with open(filename, encoding="utf8") as file:
        text = ast.get_docstring(ast.parse(file.read()))
    if not text:
        raise ValueError(f"{filename} does not open with a description")
    what = " ".join(text.split("\n\n")[0].split())
    # The commands are indented; sentences end with a dot before white space.
    prose = " ".join(" ".join(p.split()) for p in text.split("\n\n")[1:] if not p.startswith(" "))
    found = {word: re.search(rf"(?:^|\s){word} (.*?)[.;](?:\s|$)", prose) for word in ("Needs", "Gives")}
    if not found["Gives"]:
        raise ValueError(f'{filename}: its description does not say what it gives ("Gives ...")')
    return Description(what, *(match.group(1) if match else "" for match in found.values()))


def config_table(folder: str = os.path.join(ROOT, "configs")) -> str:
    """
    :param folder: of the configs
    :return: Markdown: a table for each corpus, recognised by what the names of the configs begin with
    :raises ValueError: see :func:`description`
    """
    groups: dict[str, list[str]] = {}
    for filename in sorted(glob.glob(os.path.join(glob.escape(folder), "*.config"))):
        groups.setdefault(os.path.basename(filename).split("_")[0], []).append(filename)
    known = [prefix for prefix in _CORPORA if prefix in groups]
    parts = []
    for prefix in [*known, *sorted(set(groups) - set(known))]:
        corpus = _CORPORA.get(prefix, prefix)
        rows = [["config", "runs", "needs"], ["---"] * 3]
        for filename in groups[prefix]:
            found = description(filename)
            # The first sentence, without what is in brackets. The data of the corpus is needed by all.
            what = re.sub(rf"^{re.escape(corpus)}[^:]*: |\s*\([^()]*\)", "", found.what)
            what = re.split(r"(?<=[.;:])\s", what)[0].rstrip(".;:")
            needs = [f"`{name}`" for name in dict.fromkeys(re.findall(r"configs/(\w+)\.config", found.needs))]
            name = os.path.basename(filename)
            rows.append([f"[`{name.removesuffix('.config')}`](configs/{name})", what, ", ".join(needs)])
        lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        parts.append("\n".join([f"### {corpus}", "", *lines]))
    return "\n\n".join(parts)


def with_table(readme: str, table: str) -> str:
    """
    :param readme: text with the markers
    :param table:
    :return: text with the table between them
    :raises ValueError: no markers
    """
    if not _MARKERS.search(readme):
        raise ValueError("README.md has no markers <!-- configs --> and <!-- /configs -->")
    return _MARKERS.sub(lambda match: f"{match[1]}{table}\n{match[2]}", readme)


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    parser = make_parser(__doc__)
    parser.add_argument("--update", action="store_true", help="write it into README.md")
    args = parser.parse_args(argv)
    readme_file = os.path.join(ROOT, "README.md")
    try:
        table = config_table()
        if args.update:
            with open(readme_file, encoding="utf8") as file:
                text = with_table(file.read(), table)
            with open_text_for_writing(readme_file) as file:
                file.write(text)
        else:
            print(table)
    except (OSError, ValueError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
