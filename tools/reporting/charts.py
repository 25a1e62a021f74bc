"""
Charts as inline SVG: they take the colours of the page (light or dark), print sharply, and need no library.

All numbers must be finite; None leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Bar", "Curve", "bar_chart", "heat_map", "line_chart", "ticks"]

_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40


@dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 1
    """Number of a colour of the page, 1 ... 6"""


@dataclass(frozen=True)
class Bar:
    """A bar, with an interval."""

    name: str
    value: float
    low: float | None
    high: float | None
    label: str
    colour: int = 1


def ticks(low: float, high: float, *, num: int = 5) -> list[float]:
    """:return: about num round numbers from low to high"""
    if not high > low:
        return [low]
    raw = (high - low) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}"


def _range(values: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        high = low + (abs(low) or 1.0)
    margin = 0.06 * (high - low)
    return (low if from_zero and low == 0.0 else low - margin), high + margin


def _text(kind: str, x: float, y: float, anchor: str, text: object) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _axis_labels(x_label: str, y_label: str, bottom: float) -> str:
    middle = (_TOP + bottom) / 2
    return _text("label", (_LEFT + _WIDTH - _RIGHT) / 2, bottom + 34, "middle", x_label) + (
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )


def _svg(parts: Sequence[str], name: str, *, height: float = _HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(name)}">'
        f"{''.join(parts)}</svg>"
    )


def line_chart(
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    log2_x: bool = False,
    from_zero: bool = True,
    x_ticks: Sequence[float] | None = None,
    mark_x: Sequence[tuple[float, str]] = (),
    dots: bool = True,
) -> Markup:
    """
    :param curves: with at least one point
    :param x_label:
    :param y_label:
    :param log2_x: logarithmic x axis
    :param from_zero: the y axis begins at 0
    :param x_ticks: None: round numbers
    :param mark_x: positions that get a vertical line, with their names
    :param dots: mark the points
    """
    points = [(x, y) for curve in curves for x, y in zip(curve.x, curve.y, strict=True) if y is not None]
    to_x = math.log2 if log2_x else float
    all_x = [to_x(x) for x, _ in points] + [to_x(x) for x, _ in mark_x]
    x_low, x_high = min(all_x), max(all_x)
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_low, y_high = _range([y for _, y in points], from_zero=from_zero)
    bottom = _HEIGHT - _BOTTOM

    def px(x: float) -> float:
        return _LEFT + (to_x(x) - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - _TOP)

    out = []
    for y in ticks(y_low, y_high):
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        out.append(_text("tick", _LEFT - 6, py(y) + 4, "end", _number(y)))
    for x in x_ticks if x_ticks is not None else ticks(x_low, x_high, num=6):
        out.append(f'<line class="grid" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        out.append(_text("tick", px(x), bottom + 15, "middle", _number(x)))
    for i, (x, name) in enumerate(mark_x):
        out.append(f'<line class="mark" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        side, anchor = (4, "start") if px(x) < 0.6 * _WIDTH else (-4, "end")
        out.append(_text("tick", px(x) + side, _TOP + 9 + 13 * i, anchor, name))
    for curve in curves:
        pieces: list[list[str]] = [[]]
        for x, y in zip(curve.x, curve.y, strict=True):
            if y is None:
                pieces.append([])
            else:
                pieces[-1].append(f"{px(x):.1f},{py(y):.1f}")
        out += [
            f'<polyline class="line c{curve.colour}" points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1
        ]
        for x, y in zip(curve.x, curve.y, strict=True):
            if dots and y is not None:
                hint = f"{curve.name}: {_number(y)} at {_number(x)}"
                out.append(
                    f'<circle class="dot c{curve.colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.2">'
                    f"<title>{escape(hint)}</title></circle>"
                )
    out.append(_axis_labels(x_label, y_label, bottom))
    legend = ""
    if len(curves) > 1:
        items = "".join(f'<li><span class="key c{c.colour}"></span>{escape(c.name)}</li>' for c in curves)
        legend = f'<ul class="legend">{items}</ul>'
    return Markup(_svg(out, f"{y_label} over {x_label}") + legend)


def bar_chart(bars: Sequence[Bar], *, label: str) -> Markup:
    """
    :param bars: one below the other, from 0; at least one
    :param label: what the values are
    """
    step, top = 38, 4
    high = max(max(bar.value, bar.high or 0.0) for bar in bars) or 1.0

    def px(value: float) -> float:
        return value / high * (_WIDTH - 70)

    out = []
    for i, bar in enumerate(bars):
        y = top + i * step
        out.append(_text("barname", 0, y + 11, "start", bar.name))
        out.append(
            f'<rect class="bar c{bar.colour}" y="{y + 16}" width="{max(px(bar.value), 1):.1f}" height="14" rx="2">'
            f"<title>{escape(bar.name)}: {escape(bar.label)}</title></rect>"
        )
        end = bar.value
        if bar.low is not None and bar.high is not None:
            end, middle = max(bar.high, bar.value), y + 23
            out.append(
                f'<path class="whisker" d="M{px(bar.low):.1f} {middle}H{px(bar.high):.1f}'
                f'M{px(bar.low):.1f} {middle - 4}v8M{px(bar.high):.1f} {middle - 4}v8"/>'
            )
        out.append(_text("barvalue", px(end) + 6, y + 28, "start", bar.label))
    return Markup(_svg(out, label, height=top + step * len(bars) + 4))


# Viridis, from bright (few errors) to dark (many).
_COLOURS = (
    (253, 231, 37),
    (160, 218, 57),
    (74, 193, 109),
    (31, 161, 135),
    (39, 127, 142),
    (54, 92, 141),
    (70, 50, 126),
    (68, 1, 84),
)


def _colour(share: float) -> str:
    """:return: CSS colour of 0 (low) ... 1 (high)"""
    position = min(max(share, 0.0), 1.0) * (len(_COLOURS) - 1)
    i = min(int(position), len(_COLOURS) - 2)
    rgb = (round(a + (position - i) * (b - a)) for a, b in zip(_COLOURS[i], _COLOURS[i + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in rgb)


def heat_map(
    x: Sequence[float],
    y: Sequence[float],
    values: Sequence[Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    what: str,
    marks: Sequence[tuple[float, float, str]] = (),
) -> Markup:
    """
    :param x: increasing, evenly spaced
    :param y: the same
    :param values: [y][x], percent
    :param x_label:
    :param y_label:
    :param what: name of the values
    :param marks: x, y, name of points to show
    """
    # Colours by rank of the value: else a few very bad corners leave one colour for everything that matters.
    levels = sorted({value for row in values for value in row})
    rank = {value: i / max(len(levels) - 1, 1) for i, value in enumerate(levels)}
    width, height = _WIDTH - _LEFT - _RIGHT, 310 - _TOP - _BOTTOM
    bottom = _TOP + height
    cell_w, cell_h = width / len(x), height / len(y)

    def px(value: float) -> float:
        return _LEFT + cell_w / 2 + (value - x[0]) / ((x[-1] - x[0]) or 1.0) * (width - cell_w)

    def py(value: float) -> float:
        return bottom - cell_h / 2 - (value - y[0]) / ((y[-1] - y[0]) or 1.0) * (height - cell_h)

    out = ['<g shape-rendering="crispEdges">']
    for j, row in enumerate(values):
        for i, value in enumerate(row):
            out.append(
                f'<rect x="{_LEFT + i * cell_w:.1f}" y="{bottom - (j + 1) * cell_h:.1f}" width="{cell_w + 0.3:.1f}"'
                f' height="{cell_h + 0.3:.1f}" fill="{_colour(rank[value])}"><title>{x[i]:.3g}, {y[j]:.3g}:'
                f" {value:.2f} %</title></rect>"
            )
    out.append("</g>")
    out += [_text("tick", px(value), bottom + 15, "middle", _number(value)) for value in ticks(x[0], x[-1])]
    out += [_text("tick", _LEFT - 6, py(value) + 4, "end", _number(value)) for value in ticks(y[0], y[-1])]
    for i, (mark_x, mark_y, name) in enumerate(marks):
        if x[0] <= mark_x <= x[-1] and y[0] <= mark_y <= y[-1]:
            side, anchor = (9, "start") if px(mark_x) < 0.7 * _WIDTH else (-9, "end")
            out.append(f'<circle class="ring" cx="{px(mark_x):.1f}" cy="{py(mark_y):.1f}" r="5"/>')
            shift = 12 if i % 2 else -4  # two points can be close to each other
            out.append(_text("ringname", px(mark_x) + side, py(mark_y) + shift, anchor, name))
    out.append(_axis_labels(x_label, y_label, bottom))
    gradient = ", ".join(_colour(i / 10) for i in range(11))
    legend = (
        f'<div class="scale"><span>{levels[0]:.2f} %</span>'
        f'<i style="background:linear-gradient(to right,{gradient})"></i><span>{levels[-1]:.2f} %</span></div>'
    )
    return Markup(_svg(out, f"{what} over {x_label} and {y_label}", height=bottom + 40) + legend)
