"""
What happens in training when a loss or a gradient is not a finite number (NaN, infinity): nothing changes.

The rule: such a step is skipped. Parameters, optimiser and the statistics of BatchNorm stay as they were before it, its
losses do not count in the scores of the sub-epoch, and the log says which utterances were in the batch. (With
accumulated gradients, all batches of the update are lost.) More such steps in succession than allowed, or a sub-epoch
in which no step was possible, end the run with an error.

RETURNN's updater skips a step whose gradient is not finite, and counts (``num_allowed_consec_invalid_gradient_steps``);
so a loss that is not finite is replaced here by one with the value 0 and the gradient NaN, on all processes of a
distributed training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import returnn.frontend as rf
import torch
from returnn.log import log
from returnn.tensor import Tensor, TensorDict

__all__ = ["StepGuard", "TrainingError"]

_NO_WEIGHT = 1e-30
"""Of a skipped step in the mean of a loss over the sub-epoch. RETURNN divides by it."""


class TrainingError(RuntimeError):
    """The training cannot go on."""


class _InvalidGradient(torch.autograd.Function):
    """Value 0, gradient NaN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return torch.full_like(grad, float("nan"))


class StepGuard:
    """A training step with the rule of this module. One object is for one training."""

    def __init__(self, train_step: Callable[..., None]):
        """
        :param train_step: RETURNN's ``train_step``, which marks the losses
        """
        self._train_step = train_step
        self._model: rf.Module | None = None
        self._seq_tags: list[str] = []
        self._named = True  # whether the log has the utterances of the last step
        self._num_steps = self._num_skipped = 0

    def __getstate__(self) -> dict[str, Any]:
        """For the processes that load data, which get RETURNN's config."""
        return {**self.__dict__, "_model": None}

    def __call__(self, *, model: rf.Module, extern_data: TensorDict, **kwargs: Any) -> None:
        """RETURNN's ``train_step``."""
        run_ctx = rf.get_run_ctx()
        training = bool(run_ctx.train_flag)
        # Statistics, e.g. of BatchNorm, are updated with the activations, before anything is known of the loss.
        statistics = [param.raw_tensor for param in model.parameters() if param.auxiliary] if training else []
        before = [tensor.detach().clone() for tensor in statistics]
        self._train_step(model=model, extern_data=extern_data, **kwargs)
        self._seq_tags = _seq_tags(extern_data)
        values = {name: loss.get_summed_loss().raw_tensor for name, loss in run_ctx.losses.items()}
        finite = torch.stack([value.detach().isfinite().cpu() for value in values.values()])
        self._named = not finite.all()
        self._model = model if training else None
        self._num_steps += training
        if finite.all():
            return
        bad = [f"{name} {value.item():g}" for (name, value), ok in zip(values.items(), finite, strict=True) if not ok]
        self._say(f"loss {', '.join(bad)}" + ("; the step is skipped" if training else " on the data to evaluate on"))
        if not training:
            return  # the score of these data is not finite, which is what there is to say
        for tensor, value in zip(statistics, before, strict=True):
            tensor.data.copy_(value)
        _replace_losses(run_ctx)

    def after_step(self) -> None:
        """To be called when the gradients have been computed and used: says if they were not finite."""
        if self._model is None:
            return
        grads = [param.raw_tensor.grad for param in self._model.parameters()]
        grads = [grad for grad in grads if grad is not None]
        if not grads or torch.nn.utils.get_total_norm(grads).isfinite():
            return
        self._num_skipped += 1
        if not self._named:
            self._say("the losses are finite, their gradient is not; the step is skipped")
            self._named = True

    def end_of_epoch(self, epoch: int) -> None:
        """
        :param epoch: sub-epoch
        :raises TrainingError: all its steps have been skipped
        """
        num_steps, num_skipped = self._num_steps, self._num_skipped
        self._num_steps = self._num_skipped = 0
        if num_skipped:
            print(f"sub-epoch {epoch}: {num_skipped} of {num_steps} steps were skipped, see above", file=log.v1)
        if num_skipped and num_skipped == num_steps:
            raise TrainingError(f"sub-epoch {epoch}: no loss or gradient was finite, the log says for which utterances")

    def _say(self, what: str) -> None:
        run_ctx = rf.get_run_ctx()
        tags = ", ".join(self._seq_tags)
        print(f"sub-epoch {run_ctx.epoch}, step {run_ctx.step}: {what}. Utterances: {tags}", file=log.v1, flush=True)


def _seq_tags(extern_data: TensorDict) -> list[str]:
    """:return: names of the utterances of a batch"""
    tags = extern_data.data.get("seq_tag")
    return [] if tags is None else [str(tag) for tag in tags.raw_tensor]


def _replace_losses(run_ctx: rf.RunCtx) -> None:
    """Puts 0 with the gradient NaN, and next to no weight, in the place of all losses."""
    losses = dict(run_ctx.losses)
    run_ctx.losses.clear()
    for name, loss in losses.items():
        summed = loss.get_summed_loss().raw_tensor
        zero = torch.zeros_like(summed) if loss.as_error else _InvalidGradient.apply(summed)
        weight = torch.tensor(_NO_WEIGHT, dtype=torch.float64)
        run_ctx.mark_as_loss(
            Tensor(name, dims=[], dtype=str(zero.dtype).split(".")[-1], raw_tensor=zero),
            name,
            scale=loss.scale,
            as_error=loss.as_error,
            custom_inv_norm_factor=Tensor("weight", dims=[], dtype="float64", raw_tensor=weight),
        )
