"""Plots of results: WER over loss scale, layer of the CTC head, recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from configs.base.published import Result, TrainedModel

__all__ = ["XAxis", "plot_series", "series_over"]

XAxis = Literal["loss-scale", "layer", "recipe"]
_LABELS = {
    "loss-scale": "CTC loss scale / (CTC + attention loss scale)",
    "layer": "encoder layer of the CTC head",
    "recipe": "",
}
_OTHER_SUM = ", sum of scales not 1"
Series = dict[str, list[tuple[float | str, float]]]


def series_over(
    x_axis: XAxis, results: Iterable[Result], models: Iterable[TrainedModel], *, part: str, invalid: bool = False
) -> Series:
    """
    :param x_axis: "loss-scale": for each recipe, models with CTC on the top-most layer. Models whose two loss scales do
        not add up to 1 ("model_baseline": 1 and 1) are a series of their own. "layer": for each recipe and loss scale,
        models that differ in the layer of the CTC head. "recipe": for each model, all recipes.
    :param results:
    :param models: how they were trained
    :param part: whose WER
    :param invalid: with the invalid results
    :return: name of the series -> points (x, WER in percent), sorted by x (recipes: in the given order)
    """
    trained = {(model.corpus, model.model): model for model in models}
    top = {}
    for model in trained.values():
        top[model.corpus] = max(top.get(model.corpus, 0), model.ctc_layer or 0)
    layers_of: dict[tuple[str, float, float], set[int | None]] = {}
    for model in trained.values():
        layers_of.setdefault((model.corpus, model.ctc_loss_scale, model.att_loss_scale), set()).add(model.ctc_layer)
    series: Series = {}
    for row in results:
        if part not in row.wer or (row.invalid and not invalid):
            continue
        wer = row.wer[part]
        if x_axis == "recipe":
            series.setdefault(row.model, []).append((row.recipe, wer))
            continue
        model = trained.get((row.corpus, row.model))
        if model is None:
            continue
        if x_axis == "loss-scale":
            if model.ctc_layer in (None, top[model.corpus]):
                one = abs(model.ctc_loss_scale + model.att_loss_scale - 1.0) < 1e-6
                series.setdefault(row.recipe if one else row.recipe + _OTHER_SUM, []).append((model.ctc_share, wer))
        elif (
            model.ctc_layer is not None and len(layers_of[model.corpus, model.ctc_loss_scale, model.att_loss_scale]) > 1
        ):
            name = f"{row.recipe}, CTC {model.ctc_loss_scale:g}, attention {model.att_loss_scale:g}"
            series.setdefault(name, []).append((model.ctc_layer, wer))
    if x_axis != "recipe":
        series = {name: sorted(points) for name, points in series.items()}
    return series


def plot_series(filename: str, series: Mapping[str, Sequence[tuple[float | str, float]]], *, x_axis: XAxis, title: str):
    """
    :param filename: its ending says the format (png, pdf, svg)
    :param series: see :func:`series_over`
    :param x_axis:
    :param title:
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    markers = "osD^v<>PX*"
    order = list(dict.fromkeys(x for points in series.values() for x, _ in points))  # of recipes
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(_family(name) for name in series))}
    for i, (name, points) in enumerate(series.items()):
        xs = [order.index(x) if x_axis == "recipe" else x for x, _ in points]
        style = {"linestyle": "none", "markerfacecolor": "none"} if name.endswith(_OTHER_SUM) else {}
        if x_axis == "recipe":
            style = {"linestyle": "none"}
        ys = [y for _, y in points]
        axes.plot(xs, ys, marker=markers[i % len(markers)], color=colors[_family(name)], label=name, **style)
    if x_axis == "recipe":
        axes.set_xticks(range(len(order)), order, rotation=45, ha="right")
    else:
        axes.set_xlabel(_LABELS[x_axis])
    axes.set_ylabel("WER [%]")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="x-small")
    figure.savefig(filename, dpi=150)
    pyplot.close(figure)


def _family(name: str) -> str:
    """:return: what gives a series its colour"""
    return name.removesuffix(_OTHER_SUM)
