"""
The models of one recognition run in one module: ASR model, external and internal language model, and a second ASR model
for its CTC scores ("system combination"). Each has parameters of its own and is loaded from its own checkpoint.
"""

from __future__ import annotations

import returnn.frontend as rf
from returnn.tensor import Dim, Tensor

from .aed_ctc import AedCtcModel, EncoderOutput
from .options import AedCtcOptions

__all__ = ["CombinedModel"]


class CombinedModel(AedCtcModel):
    """
    An ASR model, and beside it others as its sub-modules ``lm``, ``ilm``, ``ctc_model``. The parameters of the ASR
    model have the same names as in :class:`AedCtcModel`.
    """

    def __init__(
        self,
        opts: AedCtcOptions,
        *,
        num_labels: int,
        eos_index: int,
        lm: rf.Module | None = None,
        ilm: rf.Module | None = None,
        ctc_model: AedCtcModel | None = None,
    ):
        """
        :param opts: sizes of the ASR model
        :param num_labels: V, EOS included, of all models
        :param eos_index: EOS = BOS, of all models
        :param lm: external language model
        :param ilm: internal language model (Mini-LSTM), or the language model of the density ratio
        :param ctc_model: CTC scores are those of this model. Its encoder may have another frame rate.
        """
        super().__init__(opts, num_labels=num_labels, eos_index=eos_index)
        for name, other in {"lm": lm, "ilm": ilm, "ctc_model": ctc_model}.items():
            if other is not None and (other.target_dim.dimension, other.eos_index) != (num_labels, eos_index):
                raise ValueError(
                    f"{name} has {other.target_dim.dimension} labels (EOS is {other.eos_index}), the ASR model"
                    f" {num_labels} (EOS is {eos_index}): expected the same vocabulary"
                )
        self.lm = lm
        self.ilm = ilm
        self.ctc_model = ctc_model

    def encode_for_ctc(self, audio: Tensor, *, in_spatial_dim: Dim) -> EncoderOutput | None:
        """
        :param audio: {batch, in_spatial_dim[, 1]} samples
        :param in_spatial_dim:
        :return: of the second model. None: there is none
        """
        return self.ctc_model and self.ctc_model.encode(audio, in_spatial_dim=in_spatial_dim)
