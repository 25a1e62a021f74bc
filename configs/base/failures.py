"""
How a run ends when it cannot go on: one sentence for a user instead of a stack trace, an exit code that is not zero.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from .processes import rank

__all__ = ["explain", "failure_messages", "quiet_worker", "remove_temporary_files"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch says when a file cannot be written; it does not tell the reason.
_WRITE_FAILED = ("PytorchStreamWriter failed", "inline_container.cc", "iostream error")
# What torch says when the connection to another process breaks; gloo and NCCL.
_PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe")


def failure_messages(output_dir: str, *, goes_on: str) -> Callable[..., None]:
    """
    :param output_dir: of the run
    :param goes_on: what the same command does when it is started again, as the end of a sentence
    :return: RETURNN's ``startup_callback``. SIGINT (Ctrl-C) and SIGTERM end the run, and a full disk or the loss of
        another process of a distributed run, or a batch that does not fit into the memory does, with a message.
    """

    def startup_callback(**_kwargs: Any) -> None:
        received: list[int] = []

        def stop(number: int, _frame: Any) -> None:
            if not received:  # not print: the signal may have come in the middle of one
                message = f"error: stopped by {signal.Signals(number).name}. The same command {goes_on}.\n"
                os.write(sys.__stderr__.fileno(), message.encode())
            received.append(number)
            raise KeyboardInterrupt  # RETURNN ends its processes, and returns 1

        previous = sys.excepthook

        def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            if isinstance(error, KeyboardInterrupt) and received:
                return
            message = explain(error, output_dir)
            if message is None:
                previous(kind, error, trace)
                return
            _log_trace(kind, error, trace)
            remove_temporary_files(output_dir)
            print(f"error: {message}. The same command {goes_on}.", file=sys.stderr, flush=True)
            _end_engine()

        sys.excepthook = show
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        # Lines of the log that cannot be written must not hide what matters: results that cannot be written are errors.
        logging.raiseExceptions = False

    return startup_callback


def quiet_worker(_worker_id: int) -> None:
    """
    For processes that load data: when the main process ends, they lose it in the middle of something. That is no error
    of theirs. (A process that was really lost is reported by the main process.)
    """
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not isinstance(error, (ConnectionError, EOFError, KeyboardInterrupt)):
            previous(kind, error, trace)

    sys.excepthook = show


def explain(error: BaseException, output_dir: str) -> str | None:
    """
    :param error:
    :param output_dir: of the run
    :return: what happened, if it is a full disk, a lost process, or a batch that is too large; None: something else
    """
    from recog.out_of_memory import first_line, is_out_of_memory

    for exc in _chain(error):
        if is_out_of_memory(exc):
            return (
                f"not enough memory for a batch ({first_line(exc)}): choose a smaller ++batch_size or ++max_seqs; in a"
                " training, a larger ++accum_grad_multiple_step keeps the size of the updates"
            )
        if isinstance(exc, OSError) and exc.errno in _NO_SPACE:
            return f"{exc.filename or output_dir} cannot be written: {exc.strerror}{_free_space(output_dir)}"
        text = str(exc)
        if isinstance(exc, RuntimeError) and any(part in text for part in _WRITE_FAILED):
            return (
                f"a checkpoint in {output_dir} cannot be written: no space left, or a quota or a limit of the file size"
                f" is reached{_free_space(output_dir)}. Earlier checkpoints are intact"
            )
        if isinstance(exc, RuntimeError) and any(part in text for part in _PEER_LOST):
            return (
                f"another process of this distributed run has ended (rank {os.environ.get('RANK', '?')} lost the"
                " connection): its own messages, or those of torchrun, tell why"
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """:return: the error, and what it came from"""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _free_space(folder: str) -> str:
    """:return: how much space is left, as a part of a sentence"""
    try:
        return f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB free there)"
    except OSError:
        return ""


def remove_temporary_files(output_dir: str) -> None:
    """
    Removes what a run that was interrupted while it wrote a file has left: it takes space that is needed. Files that
    another process may be about to write are left alone: those that several processes write must be an hour old.

    :param output_dir: of the run
    """
    if rank() != 0:
        return
    for pattern in ("*.tmp", "text/*.tmp", "models/*.tmp", "*.new_tmp", "models/*.tmp_write"):
        for filename in glob.glob(os.path.join(glob.escape(output_dir), pattern)):
            with suppress(OSError):
                if not filename.endswith(".tmp") or time.time() - os.path.getmtime(filename) > 3600:
                    os.remove(filename)


def _log_trace(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """The stack trace goes to the log file only."""
    from returnn.log import log

    with suppress(OSError):
        print("".join(traceback.format_exception(kind, error, trace)), file=log.v4)


def _end_engine() -> None:
    """Stops the processes that load data, as RETURNN does when it is interrupted."""
    from returnn import __main__ as returnn_main

    engine = getattr(returnn_main, "engine", None)
    with suppress(Exception):
        if engine is not None:
            engine.finalize(error_occurred=True)
