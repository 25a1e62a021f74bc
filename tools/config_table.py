#!/usr/bin/env python3
"""
Markdown table of all configs, from the descriptions they open with: what each runs, needs and gives.

  python tools/config_table.py            print it
  python tools/config_table.py --update   put it into README.md, between the configs markers
"""

from __future__ import annotations

import argparse
import ast
import glob
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.nbest import open_text_for_writing

__all__ = ["config_table", "main", "with_table"]

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MARKERS = re.compile(r"(<!-- configs -->\n).*?(<!-- /configs -->)", re.DOTALL)


def config_table(folder: str = os.path.join(ROOT, "configs")) -> str:
    """
    :param folder: of the configs
    :return: Markdown
    :raises ValueError: a config has no description, or it does not say what the config needs or gives
    """
    rows = [["config", "runs", "needs", "gives"], ["---"] * 4]
    for filename in sorted(glob.glob(os.path.join(glob.escape(folder), "*.config"))):
        with open(filename, encoding="utf8") as file:
            text = ast.get_docstring(ast.parse(file.read()))
        if not text:
            raise ValueError(f"{filename} does not open with a description")
        what = " ".join(text.split("\n\n")[0].split())
        # The commands are indented; sentences end with a dot before white space.
        prose = " ".join(" ".join(p.split()) for p in text.split("\n\n")[1:] if not p.startswith(" "))
        cells = [f"`{os.path.basename(filename)}`", what]
        for word in ("Needs", "Gives"):
            found = re.search(rf"(?:^|\s){word} (.*?)[.;](?:\s|$)", prose)
            cells.append(found.group(1) if found else "")
        if not cells[3]:
            raise ValueError(f'{filename}: its description does not say what it gives ("Gives ...")')
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


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
    summary, _, epilog = __doc__.strip().partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
