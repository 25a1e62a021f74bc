"""
Layer-wise pretraining: the encoder begins with few layers, and grows.

In the first sub-epochs only the first n layers of the encoder run, n by a schedule. Decoder and CTC heads see the
output of the last one that runs (also the heads of layers that do not run yet). The layers above have no gradient and
are not changed by the optimiser; they join later, on top of trained ones, with their initial parameters. Since the
model has all its parameters from the beginning, and the stage depends on the number of the sub-epoch alone, a training
can be continued anywhere. A checkpoint of these sub-epochs is of no use for recognition, which runs all layers.

As in the published trainings, there is no label smoothing in all of these sub-epochs, and less dropout (of activations
and weights): none with the first number of layers n_0, then, in the encoder with N layers,
1/2 + 1/2 (n - n_0) / (N - n_0) of the usual one.

RETURNN's TensorFlow pretraining built another network for each stage and copied the parameters; also there, layers were
added on top. Different is that its layers also began with half of their width, its L2 was smaller in the first stages,
and its batches larger; here they are those of the whole training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import returnn.frontend as rf
from returnn.tensor import Tensor

from .options import AedCtcTrainOptions

__all__ = ["GrowingLayers", "PretrainStage", "num_pretrain_epochs", "pretrain_stage", "pretraining"]


class GrowingLayers(rf.Sequential):
    """Layers of which only the first ones may run."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.num_active: int | None = None
        """None: all"""

    def __call__(self, inp: Tensor, *, collected_outputs: dict[str, Tensor] | None = None, **kwargs) -> Tensor:
        """
        :param inp: of the first layer
        :param collected_outputs: gets the output of each layer; of those that do not run, that of the last that does
        :param kwargs: of each layer
        :return: output of the last layer that runs
        """
        for i, (name, layer) in enumerate(self.items()):
            if self.num_active is None or i < self.num_active:
                inp = layer(inp, **kwargs)
            if collected_outputs is not None:
                collected_outputs[name] = inp
        return inp


@dataclass(frozen=True)
class PretrainStage:
    """What is different in some sub-epochs."""

    num_layers: int
    """Of the encoder"""
    enc_dropout_scale: float
    dec_dropout_scale: float


def _layers(opts: AedCtcTrainOptions, num_layers: int) -> list[int]:
    """:return: number of layers in each stage, those that the model has not left out"""
    return [n for n in opts.pretrain_layers if n <= num_layers]


def num_pretrain_epochs(opts: AedCtcTrainOptions, *, num_layers: int) -> int:
    """:return: number of sub-epochs of pretraining for an encoder with so many layers"""
    return len(_layers(opts, num_layers)) * opts.pretrain_epochs


def pretrain_stage(opts: AedCtcTrainOptions, *, num_layers: int, epoch: int) -> PretrainStage | None:
    """
    :param opts: the options that begin with ``pretrain_``
    :param num_layers: N, of the whole encoder
    :param epoch: number of the sub-epoch, from 1
    :return: None: pretraining is over
    """
    stages = _layers(opts, num_layers)
    index = (epoch - 1) // opts.pretrain_epochs
    if index >= len(stages):
        return None
    first, num = stages[0], stages[index]
    if num == first:
        return PretrainStage(num, 0.0, 0.0)
    return PretrainStage(num, 0.5 + 0.5 * (num - first) / (num_layers - first), 1.0)


@contextmanager
def pretraining(model: rf.Module, stage: PretrainStage | None) -> Iterator[None]:
    """
    :param model: :class:`rf_models.aed_ctc.AedCtcModel`, is changed until the end of the context
    :param stage: None: nothing is changed
    """
    if stage is None:
        yield
        return
    before: list[tuple[object, str, float]] = []

    def scale(obj: object, name: str, factor: float) -> None:
        before.append((obj, name, getattr(obj, name)))
        setattr(obj, name, getattr(obj, name) * factor)

    for part, factor in ((model.encoder, stage.enc_dropout_scale), (model.decoder, stage.dec_dropout_scale)):
        for module in part.modules() if part is not None else ():
            for name, value in list(vars(module).items()):
                if name.endswith("dropout") and isinstance(value, float):
                    scale(module, name, factor)
    for weight_dropout in model.weight_dropouts:
        scale(weight_dropout, "drop_prob", stage.enc_dropout_scale)
    model.encoder.layers.num_active = stage.num_layers
    try:
        yield
    finally:
        model.encoder.layers.num_active = None
        for obj, name, value in before:
            setattr(obj, name, value)
