"""Options of the training loop."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from .options import check_positive

__all__ = ["LmTrainOptions", "LoopOptions", "TrainOptions"]


@dataclass(frozen=True)
class LoopOptions:
    """Options of every training: optimiser, learning rate, checkpoints."""

    output_dir: str | None = None
    """None: ``output/<config name>`` below the current folder."""
    num_epochs: int = 100
    """Sub-epochs, see partition_epoch."""
    accum_grad_multiple_step: int = 1
    """Batches per update."""

    peak_learning_rate: float = 1e-3
    lr_positions: tuple[float, ...] = (0.0, 0.45, 0.9, 1.0)
    """Points of the piecewise-linear learning rate, as fractions of num_epochs ("one cycle")."""
    lr_factors: tuple[float, ...] = (1e-2, 1.0, 1e-2, 1e-3)
    """Learning rate at these points, as factors of peak_learning_rate."""
    lr_per_sub_epoch: bool = False
    """The learning rate changes between sub-epochs only. The sub-epochs of each piece then have equidistant rates from
    its first to its last point, both included, as in the original per-epoch lists."""
    optimizer_type: Literal["adamw", "adam"] = "adamw"
    """"adam": weight_decay is added to the gradient (L2) instead of being applied to the weights directly."""
    weight_decay: float = 1e-2
    weight_decay_exclude: tuple[str, ...] = ("Embedding", "LearnedRelativePositionalEncoding")
    """Classes of RETURNN's frontend whose parameters have no weight decay, beside all biases. Another that may be worth
    it: LayerNorm, BatchNorm."""
    adam_eps: float = 1e-8
    gradient_clip_global_norm: float | None = 5.0
    amp: Literal["auto", "bfloat16", "off"] = "auto"
    """Mixed precision. "auto": bfloat16 where the GPU has it, off elsewhere."""

    distributed: Literal["grad", "param"] = "grad"
    """Under torchrun, each process with its share of the data. "grad": the mean of all gradients in each update.
    "param": updates without the others, and the mean of all parameters every param_sync_step updates."""
    param_sync_step: int | None = None
    """Updates between two means of the parameters; for distributed = "param" only."""
    max_skipped_steps: int = 10
    """A step whose loss or gradient is not finite is skipped, and named in the log. More than so many in succession end
    the run."""

    keep_last_n: int = 5
    """Checkpoints of so many last sub-epochs are kept."""
    keep_best_n: int = 0
    """And those of so many best sub-epochs by each of the losses and errors on the dev set."""
    random_seed: int = 42

    def __post_init__(self):
        check_positive(self, "num_epochs", "accum_grad_multiple_step")
        if not self.peak_learning_rate > 0:
            raise ValueError(f"peak_learning_rate = {self.peak_learning_rate}: expected a number > 0")
        if self.distributed == "param" and (self.param_sync_step or 0) < 1:
            raise ValueError(
                f"param_sync_step = {self.param_sync_step}: distributed = param needs a number of updates, for example"
                " 100"
            )
        if self.distributed != "param" and self.param_sync_step is not None:
            raise ValueError(f"param_sync_step = {self.param_sync_step}: only with distributed = param")
        if self.max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps = {self.max_skipped_steps}: expected 0 or more")
        if len(self.lr_positions) != len(self.lr_factors):
            raise ValueError("lr_positions and lr_factors differ in length")
        if list(self.lr_positions) != sorted(self.lr_positions) or self.lr_positions[0] != 0:
            raise ValueError(f"lr_positions = {self.lr_positions}: expected increasing fractions that start with 0")
        known = (
            "Embedding",
            "LearnedRelativePositionalEncoding",
            "LayerNorm",
            "BatchNorm",
            "Linear",
            "Conv1d",
            "Conv2d",
        )
        if unknown := [name for name in self.weight_decay_exclude if name not in known]:
            raise ValueError(f"weight_decay_exclude: {', '.join(unknown)}: expected some of {', '.join(known)}")
        if self.optimizer_type not in ("adamw", "adam"):
            raise ValueError(f"optimizer_type = {self.optimizer_type!r}: expected adamw or adam")
        if self.keep_best_n < 0 or self.keep_last_n < 1:
            raise ValueError(
                f"keep_last_n = {self.keep_last_n}, keep_best_n = {self.keep_best_n}: expected at least 1 and 0"
            )

    def learning_rate_at(self, epoch: float) -> float:
        """
        :param epoch: number of sub-epochs done, with fraction
        :return: learning rate by piecewise-linear interpolation, constant beyond the last point
        """
        if self.lr_per_sub_epoch:
            return self._learning_rate_of(int(epoch) + 1)
        x = epoch / self.num_epochs
        points = list(zip(self.lr_positions, self.lr_factors, strict=True))
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if x < x1:
                return self.peak_learning_rate * (y0 + (y1 - y0) * (x - x0) / (x1 - x0))
        return self.peak_learning_rate * points[-1][1]

    def _learning_rate_of(self, sub_epoch: int) -> float:
        """:return: of one sub-epoch (1 ... num_epochs), which is constant"""
        points = [(round(x * self.num_epochs), y) for x, y in zip(self.lr_positions, self.lr_factors, strict=True)]
        for (before, y0), (last, y1) in itertools.pairwise(points):
            if sub_epoch <= last:  # of the sub-epochs before + 1 ... last
                fraction = (sub_epoch - before - 1) / (last - before - 1) if last - before > 1 else 1.0
                return self.peak_learning_rate * (y0 + (y1 - y0) * fraction)
        return self.peak_learning_rate * points[-1][1]


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """Options of a training on audio."""

    batch_size: int = 15_000 * 160
    """Audio samples in a batch, padding included (160 samples = 10 ms)."""
    max_seqs: int = 200
    """Utterances in a batch."""
    max_label_len: int | None = None
    """Leave out training utterances with more labels than this."""
    max_audio_seconds: float | None = None
    """Leave out training utterances longer than this."""
    mel_statistics_utterances: int = 2000
    """With mel_normalization, mean and standard deviation of the features are those of so many training utterances."""
    init_checkpoint: str | None = None
    """Begin with the parameters of this checkpoint: a file, also a converted one, or the output folder of a training.
    All options of the model but its dropouts are then what the checkpoint says."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "batch_size", "max_seqs")


@dataclass(frozen=True)
class LmTrainOptions(LoopOptions):
    """Options of a training on text."""

    batch_size: int = 20_000
    """Labels in a batch, padding included."""
    max_seqs: int = 1000
    """Sentences in a batch."""
    max_label_len: int | None = None
    """Leave out training sentences with more labels than this."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "batch_size", "max_seqs")
