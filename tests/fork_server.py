"""
Runs of ``rnn.py`` as forks of one process that has imported everything: a run costs what it does, not its imports.

Each run is a process of its own with its own RETURNN, current folder, output and exit code. What differs from a user's
start is only that the modules are there already; a few tests start ``rnn.py`` itself (:func:`runs.run_config`).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class ForkServer:
    """The process that forks, and what it is told."""

    def __init__(self):
        from runs import environment

        self._process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        atexit.register(self.close)

    def run(self, args: list[str], cwd: str, *, timeout: float) -> subprocess.CompletedProcess:
        """
        :param args: of rnn.py
        :param cwd: current folder
        :param timeout: seconds, the start of the server included
        """
        with tempfile.TemporaryDirectory() as folder:
            files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
            request = {"args": args, "cwd": cwd, "files": files}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], timeout)
            if not ready:
                self.close()
                raise subprocess.TimeoutExpired(args, timeout)
            code = int(self._process.stdout.readline())
            outputs = []
            for name in files:
                with open(name, encoding="utf8", errors="replace") as file:
                    outputs.append(file.read())
        return subprocess.CompletedProcess(args, code, *outputs)

    def close(self) -> None:
        """Ends the server and what it has started."""
        global _server
        _server = None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


_server: ForkServer | None = None


def fork_config(
    name: str, cwd: object, *, ok: bool = True, timeout: float = 300, **options
) -> subprocess.CompletedProcess:
    """
    :param name: of a config, without ".config"
    :param cwd: current folder, which gets the output
    :param ok: whether it must succeed
    :param timeout: seconds
    :param options: ``++name value``
    """
    global _server
    from runs import config_file

    if _server is None:
        _server = ForkServer()
    args = [config_file(name)]
    for key, value in options.items():
        args += [f"++{key}", str(value)]
    res = _server.run(args, str(cwd), timeout=timeout)
    if ok:
        assert res.returncode == 0, f"rnn.py {' '.join(args)}\n{res.stdout[-6000:]}\n{res.stderr[-6000:]}"
    return res


def import_everything() -> None:
    """What runs import. Nothing may compute: threads of torch do not survive a fork."""
    import glob
    import importlib

    sys.path[0] = REPO
    names = """
        returnn.__main__ returnn.torch.engine returnn.torch.frontend returnn.frontend returnn.forward_iface
        returnn.datasets.audio returnn.datasets.lm scipy.signal sentencepiece soundfile torch._dynamo torch.onnx
    """
    for name in names.split():
        importlib.import_module(name)
    for package in ("recog", "recog/core", "recog/scorers", "rf_models", "configs/base"):
        for file in sorted(glob.glob(os.path.join(REPO, package, "*.py"))):
            importlib.import_module(os.path.relpath(file, REPO).removesuffix(".py").replace(os.sep, "."))
    assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread"
    sys.path.pop(0)  # rnn.py lies in another folder: configs must find their packages themselves


def _serve() -> list[str] | None:
    """:return: arguments, in each forked process; None at the end, in this one"""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            os.chdir(request["cwd"])
            null = os.open(os.devnull, os.O_RDONLY)
            outputs = [os.open(name, os.O_WRONLY | os.O_CREAT) for name in request["files"]]
            for number, file in enumerate([null, *outputs]):
                os.dup2(file, number)
            return request["args"]
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    return None


if __name__ == "__main__":
    import_everything()
    run_args = _serve()
    if run_args is not None:
        from returnn.__main__ import main

        sys.argv = ["rnn.py", *run_args]
        sys.exit(main())
