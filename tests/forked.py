"""
Trainings as forks of a script that has imported all modules: a start costs what it does, not its imports. Unlike
:mod:`fork_server`, the script can kill them, let several run at once, and change something in their process first.

The main part of such a script is ``run_script(main)``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runs import config_file


class Child(BaseException):
    """Leaves the script's own functions in the process of a training."""

    def __init__(self, args: list[str], prepare: Callable[[], None] | None):
        super().__init__()
        self.args_, self.prepare = args, prepare

    def run(self) -> None:
        """RETURNN's main function, as rnn.py calls it."""
        from returnn.__main__ import main as returnn_main

        if self.prepare is not None:
            self.prepare()
        sys.argv = ["rnn.py", *self.args_]
        vars(sys.modules["__main__"]).pop("__file__", None)  # else processes of the training would import the script
        returnn_main()


def run_script(main: Callable[[], int]) -> None:
    """Runs a script's main function; in the processes of trainings, what leaves it is the training."""
    training = None
    code = 0
    try:
        code = main()
    except Child as child:
        training = child
    if training is not None:
        training.run()
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
        with open(self.output + ".terminal.log", encoding="utf8") as file:
            return file.read()

    def start(self, *, prepare: Callable[[], None] | None = None) -> int:
        """
        :param prepare: called first in the process of the training
        :return: process id
        """
        args = [self.config if os.path.isabs(self.config) else config_file(self.config)]
        for key, value in {**self.options, "output_dir": self.output_dir}.items():
            args += [f"++{key}", str(value)]
        os.makedirs(os.path.dirname(self.output), exist_ok=True)
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        os.chdir(self.folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        terminal = os.open(self.output + ".terminal.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(terminal, 1)
        os.dup2(terminal, 2)
        raise Child(args, prepare)

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
