"""
Checks what ``make`` needs before it installs anything: Python, venv, a C++ compiler, disk space.

Uses the standard library only. Exit code 1 and one line per missing thing, with what to do.
"""

import importlib.util
import shutil
import sys

MIN_PYTHON = (3, 10)
MIN_FREE_GB = 4


def problems():
    """:return: list of str, one per missing thing"""
    res = []
    if sys.version_info < MIN_PYTHON:
        res.append(
            f"Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer is needed, this is {sys.version.split()[0]}:"
            " make PYTHON=python3.11 ..."
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        res.append("Python's venv module is missing; on Debian or Ubuntu: apt-get install python3-venv")
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        res.append(
            "no C++ compiler (RETURNN compiles a small extension at its first start);"
            " on Debian or Ubuntu: apt-get install g++"
        )
    free_gb = shutil.disk_usage(".").free / 1e9
    if free_gb < MIN_FREE_GB:
        res.append(f"only {free_gb:.1f} GB free on this disk, about {MIN_FREE_GB} GB are needed: make some space")
    return res


def main():
    """Prints the problems; exits with 1 if there are any."""
    found = problems()
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
