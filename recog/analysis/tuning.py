"""
Scale tuning on n-best lists: the scales with the fewest word errors by exact line searches from many starting points,
how far they can be trusted (bootstrap, cross-validation), and what speaks against them.

Only the direction of the vector of scales matters for the order of hypotheses, not its length. The length is chosen so
that |att| + |ctc| stays what it was: thresholds of the search that refer to scores keep their meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..nbest import NBestHeader
from .arrays import NBestArrays, scale_size
from .expected import expected_errors, minimise_expected
from .line_search import ErrorCurve, error_curve

__all__ = [
    "ScaleRange",
    "Tuning",
    "cross_validated_errors",
    "error_surface",
    "option_overrides",
    "scale_interval",
    "scale_ranges",
    "tune_scales",
    "warnings_about",
]

_OPTION_OF = {"length": "length_reward"}
_SUBTRACTED = frozenset({"ilm", "prior"})  # their scale in the header is negative, their option positive
_ANY_SIGN = frozenset({"length", "coverage", "monotonicity"})


@dataclass(frozen=True)
class ScaleRange:
    """Where the scale of a component may be, with its sign."""

    low: float
    high: float
    tuned: bool = True
    """False: it stays as it is."""


def scale_ranges(
    header: NBestHeader,
    components: Sequence[str],
    *,
    tune: Sequence[str] | None = None,
    max_ratio: float = 10.0,
    min_ratio: float = 0.0,
) -> dict[str, ScaleRange]:
    """
    :param header: of the n-best file
    :param components: of the arrays
    :param tune: components to tune. None: all but what cannot be tuned on an n-best list: the CTC scale of a
        time-synchronous search whose blank and repeat frames have scales of their own (the CTC part is then not linear
        in it). It stays, and the others move relative to it.
    :param max_ratio: largest scale, relative to the size of all scales (:func:`.arrays.scale_size`). Of the length
        reward 10 is already a lot, since it is per label.
    :param min_ratio: smallest absolute scale of components that cannot have either sign, relative to the same
    :return: component -> range
    :raises ValueError: unknown component, or one that cannot be tuned
    """
    fixed = _not_linear(header)
    if tune is not None:
        for name in tune:
            if name not in components:
                raise ValueError(f"cannot tune the scale of {name!r}: the components are {', '.join(components)}")
            if name in fixed:
                raise ValueError(
                    f"cannot tune the scale of {name!r} on this n-best list: the search had blank_scale, repeat_scale"
                    " or one_minus_term, so the CTC part is not linear in it. Tune the others relative to it."
                )
    high, low = max_ratio * scale_size(header.scales), min_ratio * scale_size(header.scales)
    ranges = {}
    for name in components:
        tuned = name not in fixed if tune is None else name in tune
        if name in _ANY_SIGN:
            ranges[name] = ScaleRange(-high, high, tuned)
        elif name in _SUBTRACTED:
            ranges[name] = ScaleRange(-high, -low, tuned)
        else:
            ranges[name] = ScaleRange(low, high, tuned)
    return ranges


def _not_linear(header: NBestHeader) -> set[str]:
    """:return: components whose score depends on their scale"""
    opts = header.options
    if header.search != "time_sync":
        return set()
    # Also a number that happens to be that of ctc_scale: it would not move with it.
    own_scale = any(opts.get(name, "ctc") != "ctc" for name in ("blank_scale", "repeat_scale"))
    return {"ctc"} if own_scale or opts.get("one_minus_term") or not opts.get("ctc_scale", 1.0) else set()


@dataclass(frozen=True)
class Tuning:
    """Result of :func:`tune_scales`."""

    default: dict[str, float]
    """Component -> scale before, with its sign, as all scales here."""
    scales: dict[str, float]
    """The same after. They are those of before if no others have fewer errors."""
    default_errors: int
    errors: int
    """Word errors of the best hypotheses with these scales."""
    local_optima: list[tuple[dict[str, float], int]] = field(default_factory=list)
    """Scales and errors that each starting point led to, the best first."""

    @property
    def improved(self) -> bool:
        """:return: whether the scales have changed"""
        return self.scales != self.default


def tune_scales(
    arrays: NBestArrays,
    default: Mapping[str, float],
    ranges: Mapping[str, ScaleRange],
    *,
    restarts: int = 20,
    criterion: str = "wer",
    seed: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Tuning:
    """
    :param arrays: n-best lists
    :param default: scales of the search, component -> scale with sign
    :param ranges: see :func:`scale_ranges`
    :param restarts: number of random starting points, beside the default
    :param criterion: "wer": word errors of the best hypotheses, by exact line search along all axes and random
        directions. "expected": word errors expected under the distribution over the n-best list that the scores
        define, by gradient descent; smoother, so it follows chance less on a small set.
    :param seed: of the random numbers
    :param progress: is called with the fraction that is done
    :return: the best scales found. With two scales the optimum is the global one: a single line has it.
    """
    base = arrays.vector(default)
    free = [i for i, name in enumerate(arrays.components) if ranges[name].tuned]
    low = np.array([ranges[name].low for name in arrays.components])
    high = np.array([ranges[name].high for name in arrays.components])
    everything_free = len(free) == len(arrays.components)
    size = scale_size(default)
    rng = np.random.default_rng(seed)
    start_errors = arrays.num_errors(base)
    starts = [base] + [_random_start(base, free, low, high, size, rng) for _ in range(restarts if free else 0)]
    found = []
    for i, start in enumerate(starts):
        if progress is not None:
            progress(i / len(starts))
        if criterion == "wer":
            scales = _descend(arrays, start, free, low, high, size, rng)
        elif criterion == "expected":
            scales = minimise_expected(arrays, start, free, low, high, size if everything_free else None)
        else:
            raise ValueError(f"criterion {criterion!r}: expected wer or expected")
        if everything_free:
            scales = _resized(arrays.components, scales, size)
        scales = _rounded(arrays, scales)
        found.append((_value(arrays, scales, criterion), _blurred_errors(arrays, scales, free), scales))
    found.sort(key=lambda item: item[:2])
    before, best = _value(arrays, base, criterion), found[0][-1]
    scales = best if found[0][0] < before else base
    return Tuning(
        default=arrays.mapping(base),
        scales=arrays.mapping(scales),
        default_errors=start_errors,
        errors=arrays.num_errors(scales),
        local_optima=[(arrays.mapping(s), arrays.num_errors(s)) for _, _, s in found],
    )


def _value(arrays: NBestArrays, scales: np.ndarray, criterion: str) -> float:
    return float(arrays.num_errors(scales)) if criterion == "wer" else expected_errors(arrays, scales)[0]


def _resized(components: Sequence[str], scales: np.ndarray, size: float) -> np.ndarray:
    """:return: the same direction with the given size"""
    now = scale_size(dict(zip(components, scales.tolist(), strict=True)))
    return scales * (size / now) if np.any(scales) else scales


def _rounded(arrays: NBestArrays, scales: np.ndarray) -> np.ndarray:
    """:return: scales with as few digits as possible that make the same number of errors"""
    wanted = arrays.num_errors(scales)
    for digits in (3, 4, 6):
        rounded = np.array([round(scale, digits) + 0.0 for scale in scales])
        if rounded.any() and arrays.num_errors(rounded) <= wanted:
            return rounded
    return scales


def _random_start(
    base: np.ndarray, free: list[int], low: np.ndarray, high: np.ndarray, size: float, rng: np.random.Generator
) -> np.ndarray:
    start = base.copy()
    for i in free:
        if low[i] < 0.0 < high[i]:  # length reward and the like
            start[i] = np.clip(rng.normal(0.0, size), low[i], high[i])
        else:
            sign = -1.0 if low[i] < 0.0 else 1.0
            start[i] = np.clip(sign * size * math.exp(rng.uniform(-3.0, 1.0)), low[i], high[i])
    return start


def _descend(
    arrays: NBestArrays,
    scales: np.ndarray,
    free: list[int],
    low: np.ndarray,
    high: np.ndarray,
    size: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """:return: scales that no line search along an axis or one of some random directions makes better"""
    errors = arrays.num_errors(scales)
    improved = True
    while improved:
        improved = False
        for direction in _directions(len(scales), free, rng):
            found = _line_minimum(arrays, scales, direction, low, high, size)
            if found is None:
                continue
            new_errors = arrays.num_errors(found)
            if new_errors < errors:
                scales, errors, improved = found, new_errors, True
    # To the middle of where the errors are that few: away from the edges, beyond which they are more.
    for i in free:
        found = _line_minimum(arrays, scales, np.eye(len(scales))[i], low, high, size)
        if found is not None and arrays.num_errors(found) <= errors:
            scales, errors = found, arrays.num_errors(found)
    return scales


def _directions(num: int, free: list[int], rng: np.random.Generator) -> list[np.ndarray]:
    """:return: the axes, and if there are several, as many random directions"""
    directions = [np.eye(num)[i] for i in free]
    if len(free) > 1:
        for _ in free:
            direction = np.zeros(num)
            direction[free] = rng.normal(size=len(free))
            directions.append(direction)
    return directions


def _line_minimum(
    arrays: NBestArrays, scales: np.ndarray, direction: np.ndarray, low: np.ndarray, high: np.ndarray, size: float
) -> np.ndarray | None:
    """:return: middle of the interval with the fewest errors on this line within the ranges; None: there is no line"""
    with np.errstate(divide="ignore", invalid="ignore"):
        to_low, to_high = (low - scales) / direction, (high - scales) / direction
    moving = direction != 0
    start = np.minimum(to_low, to_high)[moving].max()
    end = np.maximum(to_low, to_high)[moving].min()
    if not end > start:
        return None
    begin, end, _ = error_curve(arrays, scales, direction, start=start, end=end).best_interval()
    axis = np.flatnonzero(direction)
    if len(axis) == 1:
        i = axis[0]
        ends = sorted(scales[i] + x * direction[i] for x in (begin, end))
        result = scales.copy()
        result[i] = _middle(*ends, ScaleRange(low[i], high[i]), size)
        return result
    return np.clip(scales + 0.5 * (begin + end) * direction, low, high)


def _middle(begin: float, end: float, range_: ScaleRange, size: float) -> float:
    """
    :return: middle of an interval of scales: of their shares x / (size + x), since all beyond some value is practically
        the same; of a length reward and the like, which can have either sign, the plain middle
    """
    if range_.low < 0.0 < range_.high:
        return 0.5 * (begin + end)
    share = sum(abs(x) / (size + abs(x)) for x in (begin, end)) / 2
    return math.copysign(size * share / (1 - share), -1.0 if range_.low < 0.0 else 1.0)


def _blurred_errors(arrays: NBestArrays, scales: np.ndarray, free: list[int]) -> float:
    """:return: mean errors of scales nearby: of equally good scales, those that matter less in detail are better"""
    rng = np.random.default_rng(0)
    total = 0
    for _ in range(16):
        near = scales.copy()
        near[free] *= np.exp(rng.normal(0.0, 0.15, size=len(free)))
        total += arrays.num_errors(near)
    return total / 16


# ---- how far to trust it


def scale_interval(
    arrays: NBestArrays,
    scales: Mapping[str, float],
    component: str,
    range_: ScaleRange,
    *,
    samples: int = 200,
    seed: int = 1,
) -> dict[str, Any]:
    """
    :param arrays:
    :param scales: component -> scale
    :param component: whose scale varies while the others stay
    :param range_: of it
    :param samples: of the bootstrap
    :param seed:
    :return: "best": (begin, end) of the scales with the fewest errors; "confidence": (2.5 %, 97.5 %) quantiles of the
        best scale on resampled utterances; "at_border": "low" or "high" if the scale, or the interval around it, is at
        this end of the range
    """
    curve = _axis_curve(arrays, scales, component, range_)
    begin, end, _ = curve.best_interval()
    rng = np.random.default_rng(seed)
    num_utts, size = len(arrays.errors), scale_size(scales)
    middles = []
    for _ in range(samples):
        weights = rng.multinomial(num_utts, np.full(num_utts, 1.0 / num_utts))
        b, e, _ = curve.best_interval(weights)
        middles.append(_middle(b, e, range_, size))
    tolerance = 1e-6 * (range_.high - range_.low)
    low_end, high_end = range_.low + tolerance, range_.high - tolerance
    scale = scales[component]
    inside = begin <= scale <= end
    at_low = scale <= low_end or (inside and begin <= low_end)
    at_high = scale >= high_end or (inside and end >= high_end)
    at_border = None if at_low == at_high else "low" if at_low else "high"  # both: any value is as good
    if not any(value for name, value in scales.items() if name != component):
        at_border = None  # alone, any value is as good
    confidence = tuple(float(q) for q in np.quantile(middles, [0.025, 0.975])) if middles else None
    return {"best": (begin, end), "confidence": confidence, "at_border": at_border}


def _axis_curve(arrays: NBestArrays, scales: Mapping[str, float], component: str, range_: ScaleRange) -> ErrorCurve:
    """:return: errors as a function of the scale of one component"""
    i = arrays.components.index(component)
    base = arrays.vector(scales)
    base[i] = 0.0
    return error_curve(arrays, base, np.eye(len(base))[i], start=range_.low, end=range_.high)


def error_surface(
    arrays: NBestArrays,
    scales: Mapping[str, float],
    x: tuple[str, np.ndarray],
    y: tuple[str, np.ndarray] | None = None,
) -> np.ndarray:
    """
    :param arrays:
    :param scales: component -> scale, of the components that do not vary
    :param x: component, its scales [X]
    :param y: component, its scales [Y]. None: a curve over x
    :return: [X] or [Y, X] WER in percent, exact at each point
    """
    name, positions = x
    if y is not None:
        return np.stack([error_surface(arrays, {**scales, y[0]: value}, x) for value in y[1]])
    positions = np.asarray(positions, dtype=np.float64)
    low, high = float(positions.min()), float(positions.max())
    if high <= low:
        return np.full(positions.shape, arrays.wer(arrays.num_errors(arrays.vector({**scales, name: low}))))
    curve = _axis_curve(arrays, scales, name, ScaleRange(low, high))
    return 100.0 * curve.at(positions) / arrays.num_words


def cross_validated_errors(
    arrays: NBestArrays,
    default: Mapping[str, float],
    ranges: Mapping[str, ScaleRange],
    *,
    folds: int = 5,
    restarts: int = 5,
    criterion: str = "wer",
    seed: int = 1,
    progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, list[dict[str, float]]]:
    """
    Tunes on all but one fold and counts the errors on that one: what tuned scales are worth on other data of this kind.

    :param arrays: at least ``folds`` utterances
    :param default: see :func:`tune_scales`
    :param ranges:
    :param folds: utterances are assigned at random
    :param restarts:
    :param criterion:
    :param seed:
    :param progress: is called with the fraction that is done
    :return: [U] word errors of each utterance with the scales of the other folds; the scales of each fold
    """
    num_utts = len(arrays.errors)
    fold_of = np.random.default_rng(seed).permutation(num_utts) % folds
    errors, all_scales = np.zeros(num_utts, dtype=np.int64), []
    for fold in range(folds):
        if progress is not None:
            progress(fold / folds)
        held_out = fold_of == fold
        tuning = tune_scales(
            arrays.select(~held_out), default, ranges, restarts=restarts, criterion=criterion, seed=seed
        )
        errors[held_out] = arrays.select(held_out).errors_of(arrays.vector(tuning.scales))
        all_scales.append(tuning.scales)
    return errors, all_scales


def warnings_about(arrays: NBestArrays, tuning: Tuning, intervals: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """
    :param arrays:
    :param tuning:
    :param intervals: component -> :func:`scale_interval`
    :return: what speaks against these scales, as sentences
    """
    messages = []
    num_hyps = arrays.valid.sum(axis=1)
    if num_hyps.max() == 1:
        return ["Each utterance has one hypothesis only: no scale changes anything. Search with a beam and n_best > 1."]
    if tuning.improved:
        for name, interval in intervals.items():
            if interval["at_border"] is None:
                continue
            smallest = name not in _ANY_SIGN and (interval["at_border"] == "high") == (name in _SUBTRACTED)
            messages.append(
                f"The best scale of {name} ({tuning.scales[name]:g}) is on the border: "
                + ("this component does not help on these lists." if smallest else "allow larger ones (--max-ratio).")
            )
    oracle = int(arrays.oracle_errors().sum())
    if oracle == tuning.default_errors:
        messages.append(
            "No hypothesis of the n-best lists is better than the first: nothing can be tuned on them. Search again"
            " with a larger n_best (and beam)."
        )
    elif tuning.improved:
        gained, possible = tuning.default_errors - tuning.errors, tuning.default_errors - oracle
        if gained > 0.8 * possible:
            messages.append(
                f"The tuned scales get {gained} of the {possible} errors that any choice from these lists could avoid:"
                " the lists are too short for this. Search again with these scales (and a larger n_best), then tune"
                " again (--loop does both)."
            )
        best = arrays.best(arrays.vector(tuning.scales))
        long_lists = num_hyps >= 4
        at_end = (best >= 0.75 * num_hyps)[long_lists]
        if long_lists.any() and at_end.mean() > 0.1:
            messages.append(
                f"For {100 * at_end.mean():.0f} % of the utterances the tuned scales choose from the last quarter of"
                " the n-best list: better hypotheses may lie beyond. A second search is needed (--loop does it)."
            )
        if not messages:
            messages.append(
                "The n-best lists are those of the search with the old scales: search with the new ones before you"
                " report a WER."
            )
    return messages


def option_overrides(scales: Mapping[str, float], *, changed_from: Mapping[str, float] | None = None) -> list[str]:
    """
    :param scales: component -> scale with sign
    :param changed_from: leave out scales that are equal here. None: all
    :return: words for the command line of rnn.py, e.g. ["++att_scale", "0.7"]; RETURNN wants "+-1" for -1
    """
    words = []
    for name, scale in scales.items():
        if changed_from is not None and changed_from.get(name, 0.0) == scale:
            continue
        value = -scale if name in _SUBTRACTED else scale
        text = f"{value + 0.0:.10g}"
        words += [f"++{_OPTION_OF.get(name, name + '_scale')}", f"+{text}" if text.startswith("-") else text]
    return words
