"""
Forward step and callback that extract CTC label priors from the training data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import returnn.frontend as rf
import torch
from returnn.forward_iface import ForwardCallbackIface
from returnn.log import log
from returnn.tensor import Dim, TensorDict, batch_dim

from rf_models.aed_ctc import AedCtcModel, spatial_dim_of

from .callback import RecogError
from .forward import mark_outputs
from .inputs import encode
from .nbest import open_text_for_writing
from .out_of_memory import splits_when_out_of_memory
from .prior import log_prior_from_counts, posterior_sums, save_log_prior
from .progress import Progress
from .utterance_info import mark_info, read_info
from .vocab import Vocab
from .wer import format_table

__all__ = ["PriorCallback", "prior_forward_step"]


def prior_forward_step(ctc_layer: int | None) -> Callable[..., None]:
    """
    :param ctc_layer: see :class:`recog.options.CtcOptions`
    :return: RETURNN's ``forward_step``; its outputs are what :class:`PriorCallback` reads
    """

    @splits_when_out_of_memory
    def forward_step(*, model: AedCtcModel, extern_data: TensorDict, **_kwargs: Any) -> None:
        audio = extern_data["data"]
        with torch.no_grad():
            encoder_output = encode(model, audio, in_spatial_dim=spatial_dim_of(audio)).asr
            log_probs = model.ctc_log_probs(encoder_output, layer=ctc_layer)
            spatial_dim = encoder_output.enc_spatial_dim
            log_probs = log_probs.copy_transpose([batch_dim, spatial_dim, model.target_dim_with_blank]).raw_tensor
            lengths = spatial_dim.get_size_tensor().raw_tensor
            sums = posterior_sums(log_probs, lengths)
        classes_dim = Dim(sums.shape[1], name="classes")
        mark_outputs({"posterior_sum": (sums, [classes_dim]), "num_frames": (lengths.int(), [])})
        mark_info(extern_data)
        labels = extern_data["classes"]
        rf.get_run_ctx().mark_as_output(labels, "labels", dims=labels.dims)

    return forward_step


class PriorCallback(ForwardCallbackIface):
    """
    Writes ``prior.txt`` (mean posterior) and ``label_prior.txt`` (label counts), both for ``prior_file``, then
    ``prior.json``: where it is, the run is complete.

    Outputs of the forward step, per sequence: posterior_sum [V+1] float64, num_frames [] int, labels [L] int, info
    (:mod:`recog.utterance_info`). Utterances that cannot be used are left out, and counted.
    """

    def __init__(
        self,
        output_dir: str,
        *,
        vocab: Vocab,
        num_seqs: int,
        average: Literal["frames", "utterances"],
        smoothing: float,
        record: dict[str, Any],
    ):
        """
        :param output_dir:
        :param vocab:
        :param num_seqs: so many utterances must come
        :param average: each frame, or each utterance, counts the same
        :param smoothing: see :func:`recog.prior.log_prior_from_counts`
        :param record: goes into prior.json
        """
        self.prior_file = os.path.join(output_dir, "prior.txt")
        self.label_prior_file = os.path.join(output_dir, "label_prior.txt")
        self.json_file = os.path.join(output_dir, "prior.json")
        self.vocab = vocab
        self.num_seqs = num_seqs
        self.average = average
        self.smoothing = smoothing
        self.record = record

    def _start(self) -> None:
        # Not before the run begins: RETURNN pickles its config for the data loader, and cannot do that with arrays.
        self.total = np.zeros(self.vocab.num_labels + 1)
        self.counts = np.zeros(self.vocab.num_labels, dtype=np.int64)
        self.num_frames = self.num_done = 0
        self.left_out: list[str] = []
        self.progress = Progress("prior", stream=lambda: log.v3)

    def init(self, *, model: Any) -> None:
        """
        The run begins. Results of an earlier one are removed.

        :param model: not used
        """
        self._start()
        for filename in (self.json_file, self.prior_file, self.label_prior_file):
            with suppress(FileNotFoundError):
                os.remove(filename)
        self.progress.update(0.0)

    def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
        """
        :param seq_tag:
        :param outputs: see the class; NumPy arrays without batch axis
        :raises RecogError: not finite
        """
        if (error := read_info(outputs).error) is not None:
            self.left_out.append(f"{seq_tag}: {error}")
            return
        sums, num_frames = outputs["posterior_sum"].raw_tensor, int(outputs["num_frames"].raw_tensor)
        if not np.isfinite(sums).all():
            raise RecogError(f"utterance {seq_tag!r}: the CTC posteriors are not finite: is this checkpoint broken?")
        self.total += sums if self.average == "frames" else sums / max(num_frames, 1)
        self.num_frames += num_frames
        self.counts += np.bincount(outputs["labels"].raw_tensor, minlength=len(self.counts))
        self.num_done += 1
        detail = f"{self.num_done} of {self.num_seqs} utterances"
        self.progress.update(min(self.num_done / max(self.num_seqs, 1), 1.0), detail)

    def finish(self) -> None:
        """
        The run has ended: writes the files and prints a table.

        :raises RecogError: if the number of utterances is not as expected
        """
        if self.num_done + len(self.left_out) != self.num_seqs or not self.num_frames:
            raise RecogError(
                f"{self.num_done} utterances with {self.num_frames} frames arrived, but expected {self.num_seqs}"
                " utterances. No prior is written. Has the corpus changed after its preparation?"
            )
        log_prior = torch.from_numpy(self.total / self.total.sum()).log()
        label_prior = log_prior_from_counts(
            torch.from_numpy(self.counts), eos_index=self.vocab.eos_index, smoothing=self.smoothing
        )
        save_log_prior(self.prior_file, log_prior)
        save_log_prior(self.label_prior_file, label_prior)
        probs = log_prior.exp().tolist()
        record = {
            **self.record,
            "num_utts": self.num_done,
            "left_out": self.left_out,
            "num_frames": self.num_frames,
            "num_labels_in_transcripts": int(self.counts.sum()),
            "num_labels_never_in_transcripts": int((self.counts == 0).sum()) - 1,  # EOS
            "blank": probs[-1],
            "eos": probs[self.vocab.eos_index],
            "entropy_of_labels": _entropy(log_prior[:-1].log_softmax(dim=0)),
            "entropy_of_label_counts": _entropy(label_prior),
        }
        with open_text_for_writing(self.json_file) as file:
            json.dump(record, file, indent=2, allow_nan=False)
            file.write("\n")
        print(f"{self._table(probs, label_prior)}\n\n{self._summary(record)}", file=log.v1, flush=True)

    def _table(self, probs: list[float], label_prior: torch.Tensor) -> str:
        """:return: the most probable classes"""
        label_probs = label_prior.exp().tolist()
        rows = []
        for i in sorted(range(len(probs)), key=lambda i: -probs[i])[:10]:
            name = "<blank>" if i == self.vocab.num_labels else "<eos>" if i == self.vocab.eos_index else self._text(i)
            rows.append([name, str(i), f"{100 * probs[i]:.3f}", f"{100 * label_probs[i]:.3f}"])
        return format_table(["class", "index", "posterior %", "label count %"], rows, num_text_columns=1)

    def _text(self, label: int) -> str:
        return repr(self.vocab.labels_to_text([label]))

    def _summary(self, record: dict[str, Any]) -> str:
        return (
            f"{record['num_utts']} utterances, {record['num_frames']} frames, {record['num_labels_in_transcripts']}"
            f" labels; {len(record['left_out'])} utterances left out."
            f" {self.prior_file}: mean posterior. {self.label_prior_file}: label counts (++prior_type label)."
        )


def _entropy(log_probs: torch.Tensor) -> float:
    """:return: in nats"""
    return -sum(math.exp(value) * value for value in log_probs.tolist() if value != -math.inf)
