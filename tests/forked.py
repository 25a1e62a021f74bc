"""
Trainings and other programs as forks of a script that has imported all modules: a start costs what it does, not its
imports. Unlike :mod:`fork_server`, the script can kill them, let several run at once, and change something in their
process first.

The main part of such a script is ``run_script(main)``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runs import config_file


class Child(BaseException):
    """Leaves the script's own functions in the process of a program."""

    def __init__(self, work: Callable[[], None]):
        super().__init__()
        self.work = work


def fork(work: Callable[[], None], folder: str, terminal: str) -> int:
    """
    :param work: what the new process does, after all functions of the script have been left
    :param folder: its current folder
    :param terminal: what it prints is appended to this file (by another process: so it can print when it cannot write)
    :return: process id
    """
    sys.stdout.flush()
    printer = subprocess.Popen(["sh", "-c", 'exec cat >> "$0"', terminal], stdin=subprocess.PIPE)
    _printers[terminal] = printer
    pid = os.fork()
    if pid:
        printer.stdin.close()
        return pid
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(printer.stdin.fileno(), 1)
    os.dup2(printer.stdin.fileno(), 2)
    os.close(printer.stdin.fileno())
    raise Child(work)


_printers: dict[str, subprocess.Popen] = {}


def printed_text(terminal: str) -> str:
    """:return: what programs have printed, see :func:`fork`. The last of them must have ended."""
    _printers[terminal].wait(timeout=120)  # all of its processes
    with open(terminal, encoding="utf8") as file:
        return file.read()


def rnn(config: str, options: dict[str, Any]) -> None:
    """
    RETURNN's main function, as rnn.py calls it.

    :param config: name of a config of the project, or a file
    :param options: ``++name value``
    """
    from returnn.__main__ import main

    sys.argv = ["rnn.py", config if os.path.isabs(config) else config_file(config)]
    for key, value in options.items():
        sys.argv += [f"++{key}", str(value)]
    vars(sys.modules["__main__"]).pop("__file__", None)  # else processes of the run would import the script
    main()


def run_script(main: Callable[[], int]) -> None:
    """Runs a script's main function; in the processes of programs, what leaves it is the program."""
    work = None
    code = 0
    try:
        code = main()
    except Child as child:
        work = child.work
    if work is not None:
        work()
    sys.exit(code)


@dataclass
class Training:
    """A training, which can be started again."""

    config: str
    """Name of a config of the project, or a file."""
    options: dict[str, Any]
    folder: str
    output_dir: str

    @property
    def output(self) -> str:
        """:return: output folder"""
        return os.path.join(self.folder, self.output_dir)

    def log(self) -> str:
        """:return: the run's log"""
        try:
            with open(os.path.join(self.output, "returnn.log"), encoding="utf8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def terminal(self) -> str:
        """:return: what all starts have printed"""
        return printed_text(self.output + ".terminal.log")

    def start(self, *, prepare: Callable[[], None] | None = None) -> int:
        """
        :param prepare: called first in the process of the training
        :return: process id
        """
        options = {**self.options, "output_dir": self.output_dir}

        def work() -> None:
            if prepare is not None:
                prepare()
            rnn(self.config, options)

        os.makedirs(os.path.dirname(self.output), exist_ok=True)
        return fork(work, self.folder, self.output + ".terminal.log")

    def finish(self, pid: int | None = None) -> float:
        """
        :param pid: of a start; None: starts it
        :return: seconds until it has ended
        """
        begin = time.monotonic()
        _, status = os.waitpid(self.start() if pid is None else pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code == 0, f"exit code {code}\n{self.terminal()[-4000:]}"
        return time.monotonic() - begin
