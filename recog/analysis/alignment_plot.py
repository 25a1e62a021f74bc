"""
Picture of one utterance: log-mel, CTC posteriors, attention weights and CTC alignment over one time axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .alignment import UtteranceView

__all__ = ["plot_utterance"]


def plot_utterance(view: UtteranceView, filename: str, *, names: Sequence[str], title: str = "") -> None:
    """
    :param view: see :func:`.alignment.view_utterance`
    :param filename: .png, .svg or .pdf
    :param names: of the labels of the view, one each
    :param title: can have several lines
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    label_height = 0.17 * (len(names) + 1)
    panels = [("log-mel", 1.5)]
    panels += [("CTC posterior", 1.5)] if view.ctc_probs is not None else []
    panels += [("attention", max(1.0, label_height))] if view.attention is not None else []
    panels += [("CTC alignment", max(1.0, label_height))] if view.alignment is not None else []
    heights = [height for _, height in panels]
    width = float(np.clip(2.5 * view.duration + 2.0, 8.0, 24.0))
    figure = Figure(figsize=(width, sum(heights) + 1.4), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    colours = colormaps["tab10"].colors
    colour_of = {label: colours[i % 10] for i, label in enumerate(dict.fromkeys(view.labels))}
    for ax, (name, _) in zip(axes, panels, strict=True):
        if name == "log-mel":
            # Feature frame i is the window of 25 ms that begins at 10 ms * i.
            extent = (0.0, view.log_mel.shape[0] * 0.01, 0, view.log_mel.shape[1])
            low, high = np.quantile(view.log_mel, [0.02, 0.998])
            options = dict(aspect="auto", origin="lower", cmap="magma", interpolation="nearest")
            ax.imshow(view.log_mel.T, extent=extent, vmin=low, vmax=high, **options)
            ax.set_ylabel("mel filter")
        elif name == "CTC posterior":
            _draw_posteriors(ax, view, names, colour_of)
        elif name == "attention":
            _draw_attention(ax, view, names)
        else:
            _draw_alignment(ax, view, names, colour_of)
    axes[-1].set_xlabel("time [s]")
    axes[-1].set_xlim(0.0, view.duration)
    if title:
        figure.suptitle(title, fontsize="medium", x=0.02, ha="left")
    figure.savefig(filename, dpi=130)


def _draw_posteriors(ax, view: UtteranceView, names: Sequence[str], colour_of: dict) -> None:
    """A line for each label of the sequence, blank in grey, the rest of the mass dotted."""
    probs = view.ctc_probs
    time = (np.arange(probs.shape[0]) + 0.5) * view.frame_seconds
    ax.plot(time, probs[:, -1], color="0.65", linewidth=1.0, label="blank")
    name_of = dict(zip(view.labels, names, strict=True))
    for label, colour in colour_of.items():
        ax.plot(time, probs[:, label], color=colour, linewidth=1.3, label=name_of[label])
    other = np.clip(1.0 - probs[:, -1] - probs[:, sorted(colour_of)].sum(axis=1), 0.0, 1.0)
    ax.plot(time, other, color="black", linewidth=0.9, linestyle=":", label="other labels")
    for i, segment in enumerate(view.segments):
        frames = slice(round(segment.begin / view.frame_seconds), round(segment.end / view.frame_seconds))
        peak = frames.start + int(probs[frames, segment.label].argmax())
        ax.text(
            time[peak],
            1.04 + 0.1 * (i % 2),
            name_of[segment.label],
            fontsize=7,
            ha="center",
            color=colour_of[segment.label],
        )
    ax.set_ylim(0.0, 1.27)
    ax.set_ylabel("CTC posterior")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=6, frameon=False, ncols=1 + len(colour_of) // 12)


def _draw_attention(ax, view: UtteranceView, names: Sequence[str]) -> None:
    extent = (0.0, view.attention.shape[1] * view.frame_seconds, len(view.attention) - 0.5, -0.5)
    options = dict(aspect="auto", cmap="Greys", interpolation="nearest", vmin=0.0, vmax=1.0)
    ax.imshow(view.attention, extent=extent, **options)
    _label_axis(ax, [*names, "<eos>"])
    ax.set_ylabel("attention")


def _draw_alignment(ax, view: UtteranceView, names: Sequence[str], colour_of: dict) -> None:
    segments = view.segments
    for i, segment in enumerate(segments):
        left, length = segment.begin, segment.end - segment.begin
        ax.barh(i, length, left=left, height=0.8, color=colour_of[segment.label], edgecolor="none")
    for a, b, i in zip(segments[:-1], segments[1:], range(len(segments) - 1), strict=True):
        ax.plot([a.end, b.begin], [i, i + 1], color="0.75", linewidth=0.7, zorder=0)
    _label_axis(ax, names)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)
    ax.set_ylabel("alignment")


def _label_axis(ax, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=7)
