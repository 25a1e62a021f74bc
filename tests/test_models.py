"""The models of the configs at full size."""

from __future__ import annotations

import pytest
import returnn.frontend as rf

from configs.base import ls960, ted2
from rf_models.aed_ctc import AedCtcModel


def num_parameters(module: rf.Module) -> int:
    """:return: trained parameters, i.e. without the statistics of batch normalisation"""
    return sum(param.num_elements() for name, param in module.named_parameters() if "running_" not in name)


@pytest.mark.parametrize(
    ("setup", "num_labels", "expected_millions"), [(ls960.setup, 10_025, 103.5), (ted2.setup, 1_057, 86.2)]
)
def test_published_sizes(setup, num_labels, expected_millions):
    """The published models have one CTC head, on the top layer."""
    rf.select_backend_torch()
    model = AedCtcModel(setup.model, num_labels=num_labels, eos_index=0)
    heads = num_parameters(model.ctc_heads)
    one_head = num_parameters(model.ctc_heads["layer12"])
    assert heads == len(setup.model.ctc_layers) * one_head
    assert one_head == (512 + 1) * (num_labels + 1)
    assert (num_parameters(model) - heads + one_head) / 1e6 == pytest.approx(expected_millions, abs=0.05)
    assert num_parameters(model.encoder) / 1e6 == pytest.approx(74.1, abs=0.05)
