"""
The networks of ``make test-tf``: for each model kind, other sizes and options than those of the published fixtures.

The cases whose names start with ``ted2_`` also gave tests/fixtures/tf/ted2_*: python -m tf.cases NAME FOLDER in tests/
writes the config (and the mel statistics), then tests/tf/make_checkpoint.py and tools/export_tf_reference.py.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

import numpy as np

from . import networks as net

ENCODER = dict(num_layers=3, dim=24, ff=40, heads=3, channels=(4, 6, 8), kernel=7, clipping=5)
DECODER = dict(embed=10, lstm=20, att_dim=14, readout=18, enc_dim=24)


@dataclass
class Case:
    config: str
    """Text of the TensorFlow config."""
    model: str
    """Kind of model."""
    export: tuple[str, ...] = ("--random", "6")
    """Further arguments of tools/export_tf_reference.py."""
    convert: tuple[str, ...] = ()
    """Of tools/convert_tf_checkpoint.py; {folder} is that of the case."""
    files: dict[str, np.ndarray] = field(default_factory=dict)
    """Text files of numbers in that folder."""
    stages: tuple[str, ...] = ("log_mel", "encoder", "ctc_log_probs", "dec_log_probs")


def _mel_statistics(num_mel: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    return {"mean.txt": rng.normal(size=num_mel) - 2, "std_dev.txt": rng.uniform(0.5, 1.5, size=num_mel)}


def cases() -> dict[str, Case]:
    """:return: by name"""
    mel = _mel_statistics(40)
    ted2_features = net.features(num_mel=40, mean=mel["mean.txt"].tolist(), stddev=mel["std_dev.txt"].tolist())
    small_encoder = {**ENCODER, "num_layers": 1, "heads": 2, "dim": 16, "kernel": 32, "clipping": 16}
    ilm = net.decoder(num_labels=37, **DECODER, use_zoneout_output=True, mini_lstm=6)
    ls_ilm = net.decoder(num_labels=37, **{**DECODER, "enc_dim": 16}, use_zoneout_output=False, mini_lstm=6)
    lm_sizes = dict(num_labels=37, embed=6)
    return {
        "ls_aed": Case(
            net.asr_config(
                {
                    **net.features(num_mel=80),
                    **net.conformer(**ENCODER, bn_version=2),
                    **net.ctc(num_labels=31),
                    **net.decoder(num_labels=31, **DECODER, use_zoneout_output=False),
                },
                num_labels=31,
            ),
            "aed_ctc",
        ),
        "ted2_aed_small": Case(
            net.asr_config(
                {
                    **ted2_features,
                    **net.conformer(**ENCODER),
                    **net.decoder(num_labels=37, **DECODER, use_zoneout_output=True),
                },
                num_labels=37,
            ),
            "aed_ctc",
            convert=(
                "--mel-mean={folder}/mean.txt",
                "--mel-stddev={folder}/std_dev.txt",
                "--set=dec_use_zoneout_output=True",
            ),
            files=mel,
            stages=("log_mel", "encoder", "dec_log_probs"),
        ),
        "ctc_on_lower_layer": Case(
            net.asr_config(
                {
                    **net.features(num_mel=80),
                    **net.conformer(**ENCODER),
                    **net.ctc(num_labels=9, source="conformer_block_02_ln"),
                },
                num_labels=9,
            ),
            "ctc",
            convert=("--set=ctc_layers=2",),
            stages=("log_mel", "encoder", "ctc_log_probs"),
        ),
        "ted2_mini_ilm_small": Case(
            net.asr_config({**ted2_features, **net.conformer(**ENCODER), **ilm}, num_labels=37),
            "mini_lstm_ilm",
            export=("--random", "4", "--stage", "ilm_log_probs=output/output_prob"),
            convert=("--set=dec_use_zoneout_output=True",),
            stages=("log_probs",),
        ),
        "ls_mini_ilm": Case(
            net.asr_config(
                {**net.features(num_mel=80), **net.conformer(**small_encoder, bn_version=1), **ls_ilm}, num_labels=37
            ),
            "mini_lstm_ilm",
            export=("--random", "4", "--stage", "ilm_log_probs=output/output_prob"),
            stages=("log_probs",),
        ),
        "ted2_lstm_lm_small": Case(
            net.lm_config(net.lstm_lm(**lm_sizes, lstm=20, num_layers=1, transposed=False), num_labels=37),
            "lstm_lm",
            export=("--random", "4"),
            stages=("log_probs",),
        ),
        "ls_lstm_lm": Case(
            net.lm_config(net.lstm_lm(**lm_sizes, lstm=20, num_layers=3, transposed=True), num_labels=37),
            "lstm_lm",
            export=("--random", "4"),
            stages=("log_probs",),
        ),
        "ted2_trafo_lm_small": Case(
            net.lm_config(
                net.transformer_lm(
                    **lm_sizes, dim=24, ff=30, heads=3, num_layers=3, activation="gelu", positions=False
                ),
                num_labels=37,
            ),
            "transformer_lm",
            export=("--random", "4"),
            convert=("--set=num_heads=3", "--set=activation=gelu", "--set=positional_encoding=False"),
            stages=("log_probs",),
        ),
        "ls_trafo_lm": Case(
            net.lm_config(
                net.transformer_lm(**lm_sizes, dim=24, ff=30, heads=4, num_layers=2, activation="relu", positions=True),
                num_labels=37,
            ),
            "transformer_lm",
            export=("--random", "4"),
            convert=("--set=num_heads=4",),
            stages=("log_probs",),
        ),
    }


def write_case(name: str, folder: str) -> Case:
    """Writes its config and files. :return: the case"""
    case = cases()[name]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tf.config"), "w", encoding="utf8") as file:
        file.write(case.config)
    for filename, values in case.files.items():
        np.savetxt(os.path.join(folder, filename), values)
    return case


if __name__ == "__main__":
    write_case(*sys.argv[1:])
