"""
Expected word errors over n-best lists, and scales that minimise them.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from .arrays import NBestArrays, scale_size

__all__ = ["expected_errors", "minimise_expected"]


def expected_errors(arrays: NBestArrays, scales: np.ndarray) -> tuple[float, np.ndarray]:
    """
    :param arrays:
    :param scales: [C]
    :return: sum over utterances of sum_k p_k errors_k with p the softmax of the total scores over the n-best list
        (minimum word error rate criterion, Povey & Woodland 2002); its gradient [C]
    """
    totals = arrays.totals(scales)
    probs = np.exp(totals - totals.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    expected = (probs * arrays.errors).sum(axis=1, keepdims=True)
    gradient = np.einsum("uk,ukc->c", probs * (arrays.errors - expected), arrays.features)
    return float(expected.sum()), gradient


def minimise_expected(
    arrays: NBestArrays, start: np.ndarray, free: list[int], low: np.ndarray, high: np.ndarray, size: float | None
) -> np.ndarray:
    """
    :param arrays:
    :param start: [C]
    :param free: indices of the scales that may change
    :param low: [C] smallest scales
    :param high: [C] largest scales
    :param size: of the scales, which must stay: otherwise a sharper distribution would always win. None: do not touch
    :return: local minimum of the expected errors
    """

    def scales_of(x: np.ndarray) -> tuple[np.ndarray, float]:
        scales = start.copy()
        scales[free] = x
        now = scale_size(arrays.mapping(scales))
        return (scales, 1.0) if size is None else (scales * (size / now), size / now)

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        scales, factor = scales_of(x)
        errors, gradient = expected_errors(arrays, scales)
        gradient = gradient * factor
        if size is not None:  # the size is held: derivative of size / now
            raw = scales / factor
            names = arrays.components
            inside = [i for i, name in enumerate(names) if name in ("att", "ctc") and raw[i]]
            inside = inside or [int(np.abs(raw).argmax())]
            along = float(gradient @ raw) / scale_size(arrays.mapping(raw))
            for i in inside:
                gradient[i] -= along * np.sign(raw[i])
        return errors, gradient[free]

    result = minimize(
        value,
        start[free],
        jac=True,
        method="L-BFGS-B",
        bounds=[(low[i], high[i]) for i in free],
        options={"maxiter": 200},
    )
    return scales_of(result.x)[0]
