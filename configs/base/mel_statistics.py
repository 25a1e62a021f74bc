"""
Mean and standard deviation of the log-mel features of the training data, for ``mel_normalization``.

Measured once at the start of a training, on some utterances (the same in each run), without speed perturbation; kept in
its output folder, and in its checkpoints.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from returnn.log import log

from recog.progress import Progress
from rf_models.options import AedCtcOptions

from .corpus import Corpus
from .options import OptionError
from .run import write_json

__all__ = ["MEL_STATISTICS_FILE", "set_mel_statistics"]

MEL_STATISTICS_FILE = "mel_statistics.json"
"""In the output folder of a training: "mean" and "stddev" per mel filter, "utterances", "frames"."""


def set_mel_statistics(
    model: Any, corpus: Corpus, model_opts: AedCtcOptions, *, output_dir: str, num_utterances: int
) -> None:
    """
    :param model: :class:`rf_models.aed_ctc.AedCtcModel` with ``mel_normalization``
    :param corpus: whose training parts are measured, unless the output folder has the result
    :param model_opts:
    :param output_dir: of the training
    :param num_utterances: at most so many
    """
    import torch

    filename = os.path.join(output_dir, MEL_STATISTICS_FILE)
    if not os.path.isfile(filename):
        write_json(filename, _measure(corpus, model_opts, num_utterances))
    with open(filename, encoding="utf8") as file:
        statistics = json.load(file)
    for param, name in ((model.features.mean, "mean"), (model.features.stddev, "stddev")):
        values = torch.tensor(statistics[name])
        if values.shape != param.raw_tensor.shape:
            raise OptionError(f"{filename}: {len(values)} mel filters, but the model has {model_opts.num_mel_filters}")
        with torch.no_grad():
            param.raw_tensor.copy_(values)


def _measure(corpus: Corpus, model_opts: AedCtcOptions, num_utterances: int) -> dict[str, Any]:
    """:return: content of :data:`MEL_STATISTICS_FILE`"""
    from dataclasses import replace

    import torch
    from returnn.datasets import init_dataset

    from recog.standalone import audio_batch
    from rf_models.encoder import LogMelFeatures

    dataset = init_dataset(corpus.statistics_dataset(num_utterances))
    dataset.init_seq_order(epoch=1)
    num = min(num_utterances, corpus.num_seqs(corpus.opts.train_parts))
    features = LogMelFeatures(replace(model_opts, mel_normalization=False, feature_batch_norm=False))
    sums = torch.zeros(2, model_opts.num_mel_filters, dtype=torch.float64)
    frames = done = 0
    progress = Progress("mel statistics", stream=lambda: log.v3)
    while dataset.is_less_than_num_seqs(done):
        dataset.load_seqs(done, done + 1)
        audio, time_dim = audio_batch([dataset.get_data(done, "data").flatten()])
        out, frames_dim = features(audio, in_spatial_dim=time_dim)
        raw = out.copy_compatible_to_dims_raw([*audio.remaining_dims(time_dim), frames_dim, features.out_dim])
        raw = raw.flatten(0, 1).double()
        sums += torch.stack([raw.sum(dim=0), (raw**2).sum(dim=0)])
        frames += raw.shape[0]
        done += 1
        progress.update(done / num, f"{done} of {num} utterances")
    if not frames:
        raise OptionError("mel_normalization: the training data has no audio to measure its features")
    mean, square = sums / frames
    stddev = [math.sqrt(max(x, 1e-10)) for x in (square - mean**2).tolist()]
    return {"mean": mean.tolist(), "stddev": stddev, "utterances": done, "frames": frames}
