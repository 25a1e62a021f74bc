"""README's table of the configs."""

from __future__ import annotations

import os

import pytest
from tool_runs import ROOT, call_tool

from tools.config_table import config_table, with_table


def test_readme_is_current():
    with open(os.path.join(ROOT, "README.md"), encoding="utf8") as file:
        text = file.read()
    assert text == with_table(text, config_table()), "make it current with: python tools/config_table.py --update"


def test_table(tmp_path):
    (tmp_path / "a.config").write_text(
        '"""\nDoes this\nand that.\n\n    rnn.py a\n\nNeeds x.py of y. Gives z/n.txt.\n"""\n'
    )
    assert config_table(str(tmp_path)).splitlines()[2].split(" | ")[1:] == [
        "Does this and that.",
        "x.py of y",
        "z/n.txt |",
    ]
    (tmp_path / "b.config").write_text('"""Does nothing."""\n')
    with pytest.raises(ValueError, match=r"b\.config: its description does not say what it gives"):
        config_table(str(tmp_path))
    with pytest.raises(ValueError, match="no markers"):
        with_table("text", "table")


def test_tool(tmp_path):
    done = call_tool("config_table", cwd=tmp_path)
    assert done.returncode == 0 and "| `demo_train.config`" in done.stdout
