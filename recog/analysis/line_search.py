"""
Exact word error counts along a line in the space of scales (Och 2003, "Minimum error rate training in statistical
machine translation"; Macherey et al. 2008).

With scales ``s + x d`` the score of each hypothesis is a straight line in x, so the best hypothesis of an utterance
changes at the corners of the upper envelope of its lines, and nowhere else: the number of word errors is piecewise
constant, and all its pieces can be listed. No grid, no step size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import NBestArrays

__all__ = ["ErrorCurve", "error_curve"]

_MIN_WIDTH = 1e-7  # of an interval, relative to the whole: below, rounding errors of the scores decide


@dataclass(frozen=True)
class ErrorCurve:
    """Number of word errors of the best hypotheses for x in [start, end]."""

    start: float
    end: float
    breakpoints: np.ndarray
    """[M] float64, sorted, where the number of errors of an utterance changes."""
    utts: np.ndarray
    """[M] int64, of which utterance."""
    changes: np.ndarray
    """[M] int64, by how much."""
    start_errors: np.ndarray
    """[U] int64, errors of each utterance at the start."""

    def counts(self, weights: np.ndarray | None = None) -> np.ndarray:
        """
        :param weights: [U], how often each utterance counts. None: once
        :return: [M+1] number of errors before the first, between, and behind the last breakpoint
        """
        if weights is None:
            first, changes = self.start_errors.sum(), self.changes
        else:
            first, changes = (self.start_errors * weights).sum(), self.changes * weights[self.utts]
        return np.concatenate(([first], first + np.cumsum(changes)))

    def at(self, x: np.ndarray) -> np.ndarray:
        """
        :param x: [...] positions
        :return: [...] number of errors there (at a breakpoint: right of it)
        """
        return self.counts()[np.searchsorted(self.breakpoints, x, side="right")]

    def best_interval(self, weights: np.ndarray | None = None) -> tuple[float, float, float]:
        """
        :param weights: see :func:`counts`
        :return: begin, end, number of errors of the widest interval with the fewest errors
        """
        counts = self.counts(weights)
        edges = np.concatenate(([self.start], self.breakpoints, [self.end]))
        # Breakpoints at the same place (or almost) have intervals without width between them: not a place to be.
        real = np.diff(edges) > _MIN_WIDTH * (self.end - self.start)
        if not real.any():
            return self.start, self.end, float(counts[0])
        fewest = counts[real].min()
        good = (counts == fewest) | ~real  # thin intervals do not separate their neighbours
        # Runs of good intervals; only those with a real one in it count.
        change = np.flatnonzero(np.diff(np.concatenate(([False], good, [False])).astype(np.int8)))
        runs = [(edges[a], edges[b]) for a, b in change.reshape(-1, 2) if (real[a:b]).any()]
        begin, end = max(runs, key=lambda run: run[1] - run[0])
        return float(begin), float(end), float(fewest)


def error_curve(
    arrays: NBestArrays, scales: np.ndarray, direction: np.ndarray, *, start: float, end: float
) -> ErrorCurve:
    """
    :param arrays: of U utterances
    :param scales: [C] where the line is at x = 0
    :param direction: [C]
    :param start: first x
    :param end: last x, > start
    :return: the exact curve. Costs one pass over all hypotheses for each corner of the envelope of an utterance.
    """
    offset, slope = arrays.features @ scales, arrays.features @ direction  # [U, K]
    valid = arrays.valid
    current = _steepest_of_the_best(np.where(valid, offset + start * slope, -np.inf), slope)
    rows = np.arange(len(offset))
    start_errors = arrays.errors[rows, current]
    position = np.full(len(rows), start)
    points, utts, changes = [], [], []
    while rows.size:
        a, b = offset[rows], slope[rows]
        here = np.arange(len(rows))
        steeper = b - b[here, current][:, None]
        ahead = a[here, current][:, None] - a
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            crossing = np.where(valid[rows] & (steeper > 0), ahead / steeper, np.inf)
        crossing = np.maximum(crossing, position[:, None])
        nearest = crossing.min(axis=1)
        following = np.where(crossing == nearest[:, None], b, -np.inf).argmax(axis=1)
        go_on = nearest < end
        rows, nearest, previous, current = rows[go_on], nearest[go_on], current[go_on], following[go_on]
        position = nearest
        change = arrays.errors[rows, current] - arrays.errors[rows, previous]
        points.append(nearest[change != 0])
        utts.append(rows[change != 0])
        changes.append(change[change != 0])
    breakpoints = np.concatenate([*points, np.zeros(0)])
    order = np.argsort(breakpoints, kind="stable")
    return ErrorCurve(
        start=start,
        end=end,
        breakpoints=breakpoints[order],
        utts=np.concatenate([*utts, np.zeros(0, np.int64)])[order].astype(np.int64),
        changes=np.concatenate([*changes, np.zeros(0, np.int64)])[order].astype(np.int64),
        start_errors=start_errors,
    )


def _steepest_of_the_best(scores: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """:return: [U] best hypothesis; of equal ones the one that wins further to the right, of equal ones the first"""
    best = scores == scores.max(axis=1, keepdims=True)
    return np.where(best, slope, -np.inf).argmax(axis=1)
