"""Tools called as a user calls them, or, to save the time of the imports, in this process."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys

from runs import REPO as ROOT
from runs import run_command

__all__ = ["ROOT", "call_tool", "run_tool"]


def run_tool(name: str, *args: object, cwd: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """:return: finished process of tools/<name>.py, whether it succeeded or not"""
    command = [sys.executable, os.path.join(ROOT, "tools", f"{name}.py"), *map(str, args)]
    return run_command(command, str(cwd), ok=False, timeout=timeout)


def call_tool(name: str, *args: object, cwd: object) -> subprocess.CompletedProcess:
    """:return: the same from a call of its main function"""
    main = importlib.import_module(f"tools.{name}").main
    words = list(map(str, args))
    out, err = io.StringIO(), io.StringIO()
    before = os.getcwd()
    os.chdir(str(cwd))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(words)
            except SystemExit as exc:
                code = exc.code
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
