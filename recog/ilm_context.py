"""
RETURNN's forward task as source of the zero-context and average-context internal language models.

They are the ASR model's decoder with a constant instead of the attention's context vector: zero (Variani et al. 2020,
https://arxiv.org/abs/2003.07705; Meng et al. 2021, https://arxiv.org/abs/2011.01991), or its mean over all labels of
training data (Zeineldeen et al. 2021, https://arxiv.org/abs/2104.05544).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import numpy as np
import returnn.frontend as rf
import torch
from returnn.forward_iface import ForwardCallbackIface
from returnn.log import log
from returnn.tensor import TensorDict, batch_dim

from rf_models.aed_ctc import AedCtcModel
from rf_models.checkpoint import INFO_KEY, ModelInfo, build_model, load_state_dict, save_checkpoint
from rf_models.sequences import append_eos, spatial_dim_of

from .inputs import encode
from .out_of_memory import splits_when_out_of_memory
from .progress import Progress
from .utterance_info import mark_info, read_info

__all__ = ["ContextCallback", "context_forward_step"]


@splits_when_out_of_memory
def context_forward_step(*, model: AedCtcModel, extern_data: TensorDict, **_kwargs: Any) -> None:
    """
    RETURNN's ``forward_step``. Outputs per sequence: ``context_sum`` [enc_dim] float64, sum of the context vectors of
    all labels (EOS included) of the transcript; ``count`` number of labels.
    """
    audio, labels = extern_data["data"], extern_data["classes"]
    labels, spatial_dim = append_eos(
        labels, spatial_dim_of(labels), eos_index=model.eos_index, target_dim=model.target_dim
    )
    memory = model.attention_memory(encode(model, audio, in_spatial_dim=spatial_dim_of(audio)).asr)
    _, _, contexts = model.decoder.run(labels, spatial_dim=spatial_dim, memory=memory)
    sums = rf.reduce_sum(rf.cast(contexts, "float64"), axis=spatial_dim)
    mark_info(extern_data)
    run_ctx = rf.get_run_ctx()
    run_ctx.mark_as_output(sums, "context_sum", dims=[batch_dim, model.enc_dim])
    run_ctx.mark_as_output(rf.copy_to_device(spatial_dim.get_size_tensor(), sums.device), "count", dims=[batch_dim])


class ContextCallback(ForwardCallbackIface):
    """Averages, and writes the checkpoints ``zero.pt`` and ``average.pt`` of internal language models."""

    def __init__(self, output_dir: str, *, info: ModelInfo, asr_checkpoint: str, num_seqs: int):
        """
        :param output_dir: gets the checkpoints
        :param info: of the internal language models
        :param asr_checkpoint: whose decoder they have
        :param num_seqs: so many utterances will come
        """
        self.output_dir = output_dir
        self.info = info
        self.asr_checkpoint = asr_checkpoint
        self.num_seqs = num_seqs
        self._start()

    def _start(self) -> None:
        self.sum: Any = 0.0
        self.count = self.done = self.num_left_out = 0
        self.progress = Progress("contexts", stream=lambda: log.v3)

    def _file(self, name: str) -> str:
        return os.path.join(self.output_dir, f"{name}.pt")

    def init(self, *, model: Any) -> None:
        """
        The run begins.

        :param model: not used
        """
        self._start()
        for name in ("zero", "average"):
            with suppress(FileNotFoundError):
                os.remove(self._file(name))
        self.progress.update(0.0)

    def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
        """
        :param seq_tag:
        :param outputs: see :func:`context_forward_step`
        """
        self.done += 1
        self.progress.update(min(self.done / self.num_seqs, 1.0), f"{self.done} utterances")
        if read_info(outputs).error is not None:  # the dataset has said which
            self.num_left_out += 1
            return
        self.sum = self.sum + outputs["context_sum"].raw_tensor
        self.count += int(outputs["count"].raw_tensor)

    def finish(self) -> None:
        """
        The run has ended: writes the checkpoints.

        :raises SystemExit: utterances are missing, or a context is not a number
        """
        if self.done != self.num_seqs:
            raise SystemExit(f"error: {self.done} of {self.num_seqs} utterances arrived")
        average = torch.from_numpy(np.asarray(self.sum / max(self.count, 1), dtype="float32"))
        if not self.count or not average.isfinite().all():
            raise SystemExit(f"error: no usable context vectors from {self.done} utterances of {self.asr_checkpoint}")
        if self.num_left_out:
            print(f"{self.num_left_out} of {self.done} utterances were left out, see above", file=log.v1)
        for name, context in (("zero", torch.zeros_like(average)), ("average", average)):
            model = build_model(self.info)
            model.copy_decoder(load_state_dict(self.asr_checkpoint)[0])
            model.set_constant_context(context)
            state = {key: param.raw_tensor.detach().cpu().clone() for key, param in model.named_parameters()}
            filename = self._file(name)
            save_checkpoint({"model": state, INFO_KEY: self.info.as_dict()}, filename)
            print(f"{name}-context internal language model: {filename}", file=log.v1, flush=True)
