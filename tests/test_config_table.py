"""README's table of the configs."""

from __future__ import annotations

import os

import pytest
from tool_runs import ROOT, call_tool

from tools.config_table import Description, config_table, description, with_table


def test_readme_is_current():
    with open(os.path.join(ROOT, "README.md"), encoding="utf8") as file:
        text = file.read()
    assert text == with_table(text, config_table()), "make it current with: python tools/config_table.py --update"


def test_table(tmp_path):
    text = "Does this\nand that. More.\n\n    rnn.py a\n\nNeeds configs/y.config of x.py. Gives z/n.txt.\n"
    (tmp_path / "a_train.config").write_text(f'"""\n{text}"""\n')
    (tmp_path / "ted2_x.config").write_text('"""TED-LIUM 2: that.\n\nGives z/n.txt and b.txt."""\n')
    assert config_table(str(tmp_path)).splitlines() == [
        "### TED-LIUM 2",
        "",
        "| config | runs | needs |",
        "| --- | --- | --- |",
        "| [`ted2_x`](configs/ted2_x.config) | that |  |",
        "",
        "### a",
        "",
        "| config | runs | needs |",
        "| --- | --- | --- |",
        "| [`a_train`](configs/a_train.config) | Does this and that | `y` |",
    ]
    assert description(str(tmp_path / "ted2_x.config")) == Description("TED-LIUM 2: that.", "", "z/n.txt and b.txt")
    (tmp_path / "b.config").write_text('"""Does nothing."""\n')
    with pytest.raises(ValueError, match=r"b\.config: its description does not say what it gives"):
        config_table(str(tmp_path))
    with pytest.raises(ValueError, match="no markers"):
        with_table("text", "table")


def test_tool(tmp_path):
    done = call_tool("config_table", cwd=tmp_path)
    assert done.returncode == 0 and "| [`demo_train`]" in done.stdout
