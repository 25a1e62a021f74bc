"""
From the variables of a TensorFlow checkpoint to a PyTorch checkpoint: a plan that is checked as a whole before any
value is read, then one parameter after the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import returnn.frontend as rf
import torch

from rf_models.checkpoint import INFO_KEY, ModelInfo, build_model, options_class, save_checkpoint

from .asr import has_decoder, has_encoder, has_mini_lstm, map_asr, map_mini_lstm_ilm
from .lm import has_lstm_lm, has_transformer_lm, map_lstm_lm, map_transformer_lm
from .published import INVISIBLE_OPTIONS, find_published
from .variables import Assignment, ConversionError, Variables

__all__ = [
    "MODEL_KINDS",
    "Plan",
    "detect_kind",
    "make_plan",
    "parameter_shapes",
    "read_mel_statistics",
    "write_checkpoint",
]

MODEL_KINDS = ("aed_ctc", "ctc", "lstm_lm", "transformer_lm", "mini_lstm_ilm")
"""As on the command line. "ctc" gives a model of the kind aed_ctc without decoder."""
_MEL_PARAMETERS = ("features.mean", "features.stddev")


@dataclass
class Plan:
    """What a checkpoint becomes."""

    kind: str
    """One of :data:`MODEL_KINDS`."""
    info: ModelInfo
    assignments: list[Assignment]
    variables: Variables
    asr_variables: Variables | None
    constants: dict[str, np.ndarray]
    """Parameters that are not in the checkpoint."""
    parameters: dict[str, tuple[int, ...]]
    """All parameters of the model: name -> shape."""
    notes: list[str] = field(default_factory=list)
    """For the user."""
    problems: list[str] = field(default_factory=list)
    """Why it cannot be executed."""

    def variables_of(self, assignment: Assignment) -> Variables:
        """:return: of the checkpoint that the assignment reads"""
        return self.asr_variables if assignment.from_asr else self.variables


def detect_kind(variables: Variables) -> str:
    """
    :return: what kind of model the variables are of
    :raises ConversionError: none that is known
    """
    if has_mini_lstm(variables):
        return "mini_lstm_ilm"
    if has_encoder(variables):
        return "aed_ctc" if has_decoder(variables) else "ctc"
    if has_transformer_lm(variables):
        return "transformer_lm"
    if has_lstm_lm(variables):
        return "lstm_lm"
    raise ConversionError(
        f"{variables.reader.prefix} is of no model that is known here: no Conformer (source_linear/W), no Mini-LSTM"
        " (att_lstm/rec/W_re), no Transformer (dec_0_self_att_att/QKV), no LSTM (lstm0/rec/W_re)"
    )


def read_mel_statistics(filename: str, *, what: str) -> np.ndarray:
    """
    :param filename: text file of numbers, as ``numpy.savetxt`` writes it
    :param what: "mean" or "standard deviation"
    :return: [num_mel_filters] float32
    :raises ConversionError: something else is in the file
    """
    try:
        values = np.loadtxt(filename, dtype=np.float32, ndmin=1)
    except OSError as exc:
        raise ConversionError(f"{filename} cannot be read: {exc.strerror or exc}") from None
    except ValueError as exc:
        raise ConversionError(f"{filename} is no text file of numbers ({what} for each mel filter): {exc}") from None
    values = values.reshape(-1) if 1 in values.shape else values
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ConversionError(f"{filename} should have one finite number for each mel filter ({what})")
    if what != "mean" and not (values > 0).all():
        raise ConversionError(f"{filename} has a {what} that is not positive: are the two files swapped?")
    return values


def parameter_shapes(info: ModelInfo) -> dict[str, tuple[int, ...]]:
    """:return: name -> shape of all parameters of the model, without making it. Selects the PyTorch backend."""
    rf.select_backend_torch()
    with rf.set_default_device_ctx("meta"):
        model = build_model(info)
    return {name: tuple(dim.dimension for dim in param.dims) for name, param in model.named_parameters()}


def make_plan(
    kind: str,
    variables: Variables,
    *,
    asr_variables: Variables | None = None,
    settings: Mapping[str, Any] | None = None,
    mel_statistics: tuple[np.ndarray, np.ndarray] | None = None,
    eos_index: int = 0,
    check: bool = True,
) -> Plan:
    """
    :param kind: one of :data:`MODEL_KINDS`
    :param variables:
    :param asr_variables: for mini_lstm_ilm, of the ASR model
    :param settings: options as the user wants them; and ``transposed`` of the LSTM LM
    :param mel_statistics: mean, standard deviation for each mel filter
    :param eos_index: EOS = BOS
    :param check: False: a plan that cannot be executed, with :attr:`Plan.problems`, is returned as well
    :return: all shapes are checked, but nothing is read
    :raises ConversionError: the checkpoint is of something else, or does not fit the settings
    """
    settings = dict(settings or {})
    transposed = settings.pop("transposed", None)
    if kind in ("aed_ctc", "ctc"):
        options, num_labels, assignments = map_asr(variables, with_decoder=kind == "aed_ctc")
    elif kind == "lstm_lm":
        options, num_labels, assignments = map_lstm_lm(variables, transposed=transposed)
    elif kind == "transformer_lm":
        options, num_labels, assignments = map_transformer_lm(variables)
    elif kind == "mini_lstm_ilm":
        options, num_labels, assignments = map_mini_lstm_ilm(variables, asr_variables)
    else:
        raise ValueError(f"kind = {kind!r}: expected one of {', '.join(MODEL_KINDS)}")
    notes: list[str] = []
    problems: list[str] = []
    options = _complete_options(
        kind,
        options,
        num_labels,
        settings,
        notes,
        problems,
        prefix=variables.reader.prefix,
        mel_statistics=mel_statistics,
    )
    if not 0 <= eos_index < num_labels:
        raise ConversionError(f"EOS = {eos_index}, but the model has the labels 0 ... {num_labels - 1}")
    model_kind = "aed_ctc" if kind == "ctc" else kind
    try:
        # With all defaults, so that a later change of the defaults does not change this model.
        options = asdict(options_class(model_kind)(**options))
    except ValueError as exc:
        raise ConversionError(f"{variables.reader.prefix}: {exc}") from None
    if kind in ("aed_ctc", "ctc") and options["ctc_layers"]:
        (layer,) = options["ctc_layers"]
        assignments = [_with_layer(assignment, layer) for assignment in assignments]
    constants = dict(zip(_MEL_PARAMETERS, mel_statistics, strict=True)) if mel_statistics else {}
    info = ModelInfo(
        kind=model_kind,
        options=options,
        num_labels=num_labels,
        eos_index=eos_index,
        source=_describe_source(variables, asr_variables),
    )
    plan = Plan(
        kind=kind,
        info=info,
        assignments=assignments,
        variables=variables,
        asr_variables=asr_variables,
        constants=constants,
        parameters=parameter_shapes(info),
        notes=notes,
        problems=problems,
    )
    try:
        _check_plan(plan)
    except ConversionError as exc:
        problems.append(str(exc))
    if problems and check:
        raise ConversionError(problems[0])
    if not problems and asr_variables is not None:
        _compare_frozen_copies(plan)
    return plan


def _complete_options(
    kind: str,
    found: dict[str, Any],
    num_labels: int,
    settings: dict[str, Any],
    notes: list[str],
    problems: list[str],
    *,
    prefix: str,
    mel_statistics: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, Any]:
    """
    :param kind:
    :param found: options that follow from the checkpoint
    :param num_labels:
    :param settings: of the user
    :param notes: is extended by what is assumed
    :param problems: is extended by what the user must say
    :param prefix: of the checkpoint, for messages
    :param mel_statistics:
    :return: options
    """
    has_ctc = bool(found.get("ctc_layers"))
    for name, value in settings.items():
        if name == "mel_normalization":
            if value and mel_statistics is None:
                raise ConversionError(
                    "mel_normalization = True needs the statistics: --mel-mean FILE --mel-stddev FILE"
                )
            if not value and mel_statistics is not None:
                raise ConversionError("mel_normalization = False, but --mel-mean and --mel-stddev are given")
        elif name == "ctc_layers":
            if len(value) != int(has_ctc):
                have = "one CTC softmax" if has_ctc else "no CTC softmax"
                raise ConversionError(f"ctc_layers = {value}, but {prefix} has {have}")
        elif name in found and name not in INVISIBLE_OPTIONS[kind] and value != found[name]:
            raise ConversionError(f"{name} = {value!r} was given, but {prefix} has {name} = {found[name]!r}")

    published = find_published(kind, {**found, "num_labels": num_labels})
    assumed: dict[str, Any] = {}
    if kind in ("aed_ctc", "ctc"):
        assumed["mel_normalization"] = mel_statistics is not None
        if published and published.mel_normalization and not mel_statistics and "mel_normalization" not in settings:
            problems.append(
                f"{prefix} has the sizes of the published model {published.name}, which normalises the mel features:"
                " give the statistics with --mel-mean FILE --mel-stddev FILE, or --set mel_normalization=False if this"
                " model was trained without"
            )
        num_convs = len(found["enc_frontend_channels"])
        if num_convs == 3:
            assumed["enc_frontend_time_strides"] = (1, 3, 2)
        elif "enc_frontend_time_strides" not in settings:
            assumed["enc_frontend_time_strides"] = (1,) * num_convs
            problems.append(
                f"{prefix} has {num_convs} convolutions below the Conformer, and their strides in time are not visible:"
                " give them, for example --set enc_frontend_time_strides=1,2,2"
            )
    if kind in ("aed_ctc", "mini_lstm_ilm"):
        assumed["dec_use_zoneout_output"] = False  # RETURNN's default when such models were trained
    if published:
        notes.append(f"These are the sizes of the published model {published.name}.")
        assumed |= published.options
    elif kind == "transformer_lm" and "num_heads" not in settings:
        assumed["num_heads"] = 1
        problems.append(
            f"the number of attention heads is not visible in {prefix} (its keys have {found['att_dim']} dimensions in"
            " all): give it with --set num_heads=N"
        )
    elif kind == "aed_ctc" and mel_statistics and "dec_use_zoneout_output" not in settings:
        notes.append(
            "The published model with normalised mel features (TED-LIUM 2) had dec_use_zoneout_output = True. If this"
            " one had it as well: --set dec_use_zoneout_output=True"
        )
    options = {**found, **assumed, **settings}
    model_options = options_class("aed_ctc" if kind == "ctc" else kind)
    silent = {
        name: options.get(name, getattr(model_options, name))
        for name in INVISIBLE_OPTIONS[kind]
        if name not in settings and not (name == "mel_normalization" and mel_statistics)
    }
    if not has_ctc:
        silent.pop("ctc_layers", None)
    if silent:
        lines = [
            f"  {name} = {value:.6g}" if isinstance(value, float) else f"  {name} = {value}"
            for name, value in silent.items()
        ]
        notes.append(
            "\n".join(["Not visible in a checkpoint, assumed (change with --set, prove with --verify):", *lines])
        )
    return options


def _with_layer(assignment: Assignment, layer: int) -> Assignment:
    target = assignment.target.replace("{ctc_layer}", str(layer))
    return Assignment(target, assignment.source, assignment.transform, assignment.from_asr)


def _describe_source(variables: Variables, asr_variables: Variables | None) -> dict[str, Any]:
    """:return: where the model comes from"""
    res: dict[str, Any] = {"format": "RETURNN, TensorFlow", "checkpoint": os.path.abspath(variables.reader.prefix)}
    if asr_variables is not None:
        res["asr_checkpoint"] = os.path.abspath(asr_variables.reader.prefix)
    return res


def _check_plan(plan: Plan) -> None:
    """:raises ConversionError: a parameter or a variable is left over, or shapes differ"""
    problems = []
    targets = [assignment.target for assignment in plan.assignments] + list(plan.constants)
    assert len(set(targets)) == len(targets), "a parameter is assigned twice"
    if surplus := sorted(set(targets) - set(plan.parameters)):
        raise AssertionError(f"these are no parameters of the model: {surplus}")
    if unfilled := sorted(set(plan.parameters) - set(targets)):
        raise ConversionError(f"nothing in {plan.variables.reader.prefix} gives the parameters {', '.join(unfilled)}")
    for assignment in plan.assignments:
        variables = plan.variables_of(assignment)
        wanted = plan.parameters[assignment.target]
        if assignment.source not in variables:
            problems.append(f"it has no variable {assignment.source} for {assignment.target} {list(wanted)}")
            continue
        name, shape = variables.names[assignment.source], variables.shape(assignment.source)
        try:
            # On memory that is never touched: only the shape counts.
            found = assignment.transform.function(np.broadcast_to(np.zeros((), np.int8), shape)).shape
        except (ValueError, IndexError):
            found = None
        if found != wanted:
            how = "" if assignment.transform.description == "copy" else f" ({assignment.transform.description})"
            problems.append(f"{name} {list(shape)}{how} does not fit {assignment.target} {list(wanted)}")
    for name, value in plan.constants.items():
        if value.shape != plan.parameters[name]:
            problems.append(
                f"the mel statistics have {value.size} values, but the model {plan.parameters[name][0]} mel filters"
                f" ({name})"
            )
    if problems:
        more = f" ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ConversionError(
            f"{plan.variables.reader.prefix} is no {plan.kind} of consistent sizes: {'; '.join(problems[:5])}{more}"
        )
    for variables in (plan.variables, plan.asr_variables):
        if variables is not None:
            used = {a.source for a in plan.assignments if plan.variables_of(a) is variables}
            variables.check_all_used(used, plan.kind)


def _compare_frozen_copies(plan: Plan) -> None:
    """Warns if the internal LM was trained with another ASR model than the one given."""
    for assignment in plan.assignments:
        name = assignment.source
        if not assignment.from_asr or name not in plan.variables:
            continue
        own, asr = plan.variables, plan.asr_variables
        if own.shape(name) != asr.shape(name) or not np.array_equal(own.read(name), asr.read(name)):
            plan.notes.append(
                f"Warning: {own.reader.prefix} holds copies of the ASR model's decoder that differ from"
                f" {asr.reader.prefix} ({own.names[name]}): was it trained with another ASR model? The decoder of the"
                " latter is used."
            )
            return


def write_checkpoint(plan: Plan, filename: str, *, progress: Callable[[float, str], None] | None = None) -> int:
    """
    :param plan:
    :param filename:
    :param progress: called with fraction done and name of the parameter
    :return: number of values
    :raises ConversionError: a value is not usable
    """
    state: dict[str, torch.Tensor] = {}
    # In the order of the file: each shard is read from start to end.
    ordered = sorted(
        plan.assignments,
        key=lambda a: (a.from_asr, (e := _entry(plan, a)).shard, e.offset),
    )
    for i, assignment in enumerate(ordered):
        variables = plan.variables_of(assignment)
        value = variables.read(assignment.source)
        if not np.issubdtype(value.dtype, np.floating):
            raise ConversionError(f"{variables.names[assignment.source]} is of the type {value.dtype}, expected float")
        value = np.ascontiguousarray(assignment.transform.function(value), dtype=np.float32)
        if not np.isfinite(value).all():
            raise ConversionError(
                f"{variables.names[assignment.source]} in {variables.reader.prefix} has values that are not finite: the"
                " training had diverged"
            )
        state[assignment.target] = torch.from_numpy(value)
        if progress:
            progress((i + 1) / len(ordered), assignment.target)
    state |= {name: torch.from_numpy(np.array(value, np.float32)) for name, value in plan.constants.items()}
    content = {
        "model": {name: state[name] for name in plan.parameters},
        "epoch": _epoch(plan.variables.reader.prefix),
        "step": _global_step(plan.variables),
        INFO_KEY: plan.info.as_dict(),
    }
    save_checkpoint(content, filename)
    return sum(value.numel() for value in state.values())


def _entry(plan: Plan, assignment: Assignment) -> Any:
    variables = plan.variables_of(assignment)
    return variables.reader.entries[variables.names[assignment.source]]


def _epoch(prefix: str) -> int:
    """:return: as in the name (network.035), else 1"""
    match = re.search(r"\.(\d+)$", prefix)
    return max(int(match[1]), 1) if match else 1


def _global_step(variables: Variables) -> int:
    """:return: number of updates, 0 if the checkpoint does not say"""
    entry = variables.reader.entries.get("global_step")
    if entry is None or entry.shape or not entry.readable:
        return 0
    return max(int(variables.reader.read("global_step")), 0)
