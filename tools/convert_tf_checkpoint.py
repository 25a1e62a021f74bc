#!/usr/bin/env python3
"""
Converts a checkpoint of RETURNN's TensorFlow backend to a PyTorch checkpoint for the configs of this project.

  python tools/convert_tf_checkpoint.py --model aed_ctc average.index average.pt
  python tools/convert_tf_checkpoint.py --model aed_ctc ted2/average.index ted2.pt \\
      --mel-mean mean.txt --mel-stddev std_dev.txt --set dec_use_zoneout_output=True
  python tools/convert_tf_checkpoint.py --model transformer_lm lm/network.023.index lm.pt --set num_heads=8
  python tools/convert_tf_checkpoint.py --model mini_lstm_ilm ilm/average.index ilm.pt --asr-checkpoint average.index
  python tools/convert_tf_checkpoint.py --list average.index
  python tools/convert_tf_checkpoint.py --verify REF.npz average.pt

SRC is PREFIX.index, PREFIX, or the folder of the checkpoint. TensorFlow is not needed. All sizes are read from the
checkpoint. Every variable is used or named as ignored, every parameter of the new model is filled, and the result says
what it holds: rnn.py configs/ls960_recog_ctc.config ++load average.pt. Options that leave no trace in a checkpoint are
printed, and can be changed with --set. --verify compares the converted model with outputs of the TensorFlow network
(see tools/export_tf_reference.py): without, nothing proves that these options are right.

Exit code: 0 done, 1 not done or the outputs differ.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_type_hints

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tools.cli import make_parser, run_main, write_json
from tools.tf_conversion.bundle import BundleError, BundleReader
from tools.tf_conversion.variables import ConversionError, Variables

__all__ = ["main"]

MODELS = ("aed_ctc", "ctc", "lstm_lm", "transformer_lm", "mini_lstm_ilm")


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    args = _parse_args(argv)
    return run_main(lambda: _main(args), errors=(BundleError, ConversionError))


def _main(args: argparse.Namespace) -> int:
    _set_up_returnn()
    if args.list:
        return _list(args)
    if args.dst is None:
        return _report_verification(args, args.src)
    return _convert(args)


def _set_up_returnn() -> None:
    """Models as the configs make them."""
    import warnings

    import returnn.frontend as rf
    from returnn.util.basic import BehaviorVersion

    from configs.base.run import BEHAVIOR_VERSION

    rf.select_backend_torch()
    BehaviorVersion.set(BEHAVIOR_VERSION)
    warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("src", metavar="SRC", help="TensorFlow checkpoint; with --verify alone, a converted one")
    parser.add_argument("dst", metavar="DST", nargs="?", help="PyTorch checkpoint to write (.pt)")
    parser.add_argument("--model", choices=MODELS, help="kind of model (default: as the names of the variables say)")
    parser.add_argument(
        "--list", action="store_true", help="only list the variables: shapes, what they become, what is left over"
    )
    parser.add_argument(
        "--set",
        metavar="OPTION=VALUE",
        action="append",
        default=[],
        help="option of the model that is not visible in a checkpoint (can be repeated), for example"
        " dec_use_zoneout_output=True, num_heads=12, activation=gelu, positional_encoding=False, ctc_layers=8",
    )
    parser.add_argument("--mel-mean", metavar="FILE", help="text file: mean of each mel filter (normalised features)")
    parser.add_argument("--mel-stddev", metavar="FILE", help="text file: standard deviation of each mel filter")
    parser.add_argument(
        "--asr-checkpoint",
        metavar="SRC",
        help="for mini_lstm_ilm: TensorFlow checkpoint of the ASR model whose decoder it uses (default: the copy of it"
        " in the internal language model's own checkpoint)",
    )
    parser.add_argument("--eos-index", metavar="N", type=int, default=0, help="label of EOS = BOS (%(default)s)")
    parser.add_argument(
        "--ignore",
        metavar="REGEX",
        action="append",
        default=[],
        help="leave out variables whose whole name matches (can be repeated)",
    )
    parser.add_argument("--verify", metavar="REF.npz", help="compare with outputs of the TensorFlow network")
    parser.add_argument(
        "--tolerance", metavar="X", type=float, default=2e-4, help="largest difference of --verify (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write what is listed or verified as JSON")
    parser.add_argument("--force", action="store_true", help="replace an existing DST")
    args = parser.parse_args(argv)
    if args.list and args.dst:
        parser.error("--list writes no checkpoint: leave DST out")
    if args.list and args.verify:
        parser.error("--list and --verify do not go together")
    if not args.list and args.dst is None and not args.verify:
        parser.error("DST is missing (or did you mean --list or --verify?)")
    if args.dst is not None and not args.dst.endswith(".pt"):
        parser.error(f"DST = {args.dst}: the name should end with .pt")
    if bool(args.mel_mean) != bool(args.mel_stddev):
        parser.error("--mel-mean and --mel-stddev belong together")
    if args.asr_checkpoint and args.model not in (None, "mini_lstm_ilm"):
        parser.error(f"--asr-checkpoint is for --model mini_lstm_ilm, not {args.model}")
    if args.mel_mean and args.model not in (None, "aed_ctc", "ctc"):
        parser.error(f"--mel-mean and --mel-stddev are for models of audio, not {args.model}")
    return args


def _open(path: str, args: argparse.Namespace) -> Variables:
    """:return: variables of a checkpoint, those of --ignore marked"""
    if path.endswith(".pt"):
        raise ConversionError(f"{path} is a PyTorch checkpoint, expected one of TensorFlow (PREFIX.index)")
    variables = Variables(BundleReader(path))
    for pattern in args.ignore:
        try:
            variables.ignore(pattern, "as you wish (--ignore)")
        except re.error as exc:
            raise ConversionError(f"--ignore {pattern}: not a regular expression: {exc}") from None
    return variables


def _plan_opts(args: argparse.Namespace, kind: str, variables: Variables) -> dict[str, Any]:
    """:return: arguments for make_plan"""
    from tools.tf_conversion.convert import read_mel_statistics

    if args.asr_checkpoint and kind != "mini_lstm_ilm":
        raise ConversionError(f"--asr-checkpoint is for mini_lstm_ilm, but {variables.reader.prefix} is {kind}")
    mel = None
    if args.mel_mean:
        if kind not in ("aed_ctc", "ctc"):
            raise ConversionError(f"--mel-mean is for models of audio, but {variables.reader.prefix} is {kind}")
        mel = (
            read_mel_statistics(args.mel_mean, what="mean"),
            read_mel_statistics(args.mel_stddev, what="standard deviation"),
        )
    return dict(
        asr_variables=_open(args.asr_checkpoint, args) if args.asr_checkpoint else None,
        settings=_parse_settings(args.set, kind),
        mel_statistics=mel,
        eos_index=args.eos_index,
    )


def _parse_settings(settings: list[str], kind: str) -> dict[str, Any]:
    """:return: values by option; raises ConversionError if one is unknown or has the wrong type"""
    from configs.base.options import parse_value
    from rf_models.checkpoint import options_class

    cls = options_class("aed_ctc" if kind == "ctc" else kind)
    hints = get_type_hints(cls)
    annotations = {field.name: hints[field.name] for field in fields(cls)}
    if kind == "lstm_lm":
        annotations["transposed"] = bool
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals:
            raise ConversionError(f"--set {setting}: expected OPTION=VALUE")
        if name not in annotations:
            close = difflib.get_close_matches(name, annotations, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(sorted(annotations))}"
            raise ConversionError(f"--set {setting}: a model of the kind {kind} has no option {name!r}; {hint}")
        try:
            values[name] = parse_value(text.strip(), annotations[name], name=name)
        except ValueError as exc:
            raise ConversionError(f"--set: {exc}") from None
    return values


def _list(args: argparse.Namespace) -> int:
    from tools.tf_conversion.convert import detect_kind
    from tools.tf_conversion.listing import list_variables, table

    variables = _open(args.src, args)
    kind, plan_opts, problem = args.model, {}, None
    try:
        kind = kind or detect_kind(variables)
        plan_opts = _plan_opts(args, kind, variables)
    except ConversionError as exc:
        if args.model or args.set or args.mel_mean or args.asr_checkpoint:
            raise
        problem = str(exc)
    records, plan, why_not = list_variables(variables, kind=kind, **plan_opts)
    problem = problem or why_not
    print(table(records))
    print()
    num_values = sum(entry.num_values for entry in variables.reader.entries.values())
    print(f"{variables.reader.prefix}: {len(variables.reader.entries)} variables, {num_values / 1e6:.2f} M values")
    if plan and not problem:
        from_asr = sum(assignment.from_asr for assignment in plan.assignments)
        print(
            f"{plan.kind}, {plan.info.num_labels} labels: all {len(plan.parameters)} parameters are filled"
            + (f" ({from_asr} of them from {args.asr_checkpoint})" if from_asr else "")
            + f", {len(variables.ignored)} ignored, nothing is left over"
        )
        for note in plan.notes:
            print(note)
    else:
        print(f"Cannot be converted as it is: {problem}")
    if args.json:
        content = {
            "checkpoint": variables.reader.prefix,
            "model": kind,
            "variables": records,
            "problem": problem,
            "options": plan.info.options if plan and not problem else None,
        }
        write_json(args.json, content)
    return 0


def _convert(args: argparse.Namespace) -> int:
    if os.path.exists(args.dst) and not args.force:
        raise ConversionError(f"{args.dst} exists: give another name, or replace it with --force")
    folder = os.path.dirname(os.path.abspath(args.dst))
    if not os.path.isdir(folder):
        raise ConversionError(f"the folder {folder} does not exist")
    if args.verify and not os.path.isfile(args.verify):
        raise ConversionError(f"{args.verify} does not exist")
    variables = _open(args.src, args)
    from recog.progress import Progress
    from tools.tf_conversion.convert import detect_kind, make_plan, write_checkpoint

    kind = args.model or detect_kind(variables)
    plan = make_plan(kind, variables, **_plan_opts(args, kind, variables))
    for note in plan.notes:
        print(note)
    with _temporary(args.dst) as temporary:
        num_values = write_checkpoint(plan, temporary, progress=Progress("converting").update)
        if args.verify and _report_verification(args, temporary):
            print(f"error: the outputs differ: {args.dst} was not written", file=sys.stderr)
            return 1
        os.replace(temporary, args.dst)
    _print_ignored(variables.ignored)
    print(
        f"{args.dst}: {kind}, {plan.info.num_labels} labels, {len(plan.parameters)} parameters"
        f" ({num_values / 1e6:.2f} M values)"
    )
    return 0


def _print_ignored(ignored: dict[str, str]) -> None:
    for reason in sorted(set(ignored.values())):
        names = sorted(name for name, why in ignored.items() if why == reason)
        what = names[0] if len(names) == 1 else f"{len(names)} variables ({names[0]} ...)"
        print(f"ignored: {what}: {reason}")


@contextlib.contextmanager
def _temporary(filename: str) -> Iterator[str]:
    """:return: name in the same folder, whose file is removed if it has not been renamed"""
    temporary = f"{filename}.new"  # always the same: torch writes the name into the file
    try:
        yield temporary
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _report_verification(args: argparse.Namespace, filename: str) -> int:
    """:return: exit code"""
    from tools.tf_conversion.verify import verify

    results, skipped = verify(filename, args.verify)
    print(f"Largest absolute difference to {args.verify} (tolerance {args.tolerance:g}):")
    print(f"{'stage':<15} {'utterances':>10}  {'alone':>8}  {'in batch':>8}")
    for r in results:
        note = f"  ({r.note})" if r.note else ""
        mark = "" if r.agrees(args.tolerance) else "  DIFFERS"
        print(f"{r.stage:<15} {r.num_seqs:>10}  {r.alone:8.1e}  {r.in_batch:8.1e}{mark}{note}")
    if skipped:
        print(f"not compared, since the model has no such output: {', '.join(skipped)}")
    ok = all(r.agrees(args.tolerance) for r in results)
    if not ok:
        first = next(r.stage for r in results if not r.agrees(args.tolerance))
        print(f"{first} is the first stage that differs. {_HINTS.get(first, '')}".strip())
    if args.json:
        content = {
            "reference": args.verify,
            "tolerance": args.tolerance,
            "agrees": ok,
            "not_compared": skipped,
            "stages": {r.stage: {"alone": r.alone, "in_batch": r.in_batch, "num_seqs": r.num_seqs} for r in results},
        }
        write_json(args.json, content)
    return 0 if ok else 1


_HINTS = {
    "log_mel": "Was the TensorFlow model trained with mel normalisation (--mel-mean, --mel-stddev), or with another"
    " logarithm (--set log_mel_base=...)?",
    "encoder": "Are the strides of its convolutions right (--set enc_frontend_time_strides=...)?",
    "ctc_log_probs": "Is its CTC softmax on another layer (--set ctc_layers=N)?",
    "dec_log_probs": "Did it have the option use_zoneout_output (--set dec_use_zoneout_output=True or False)?",
    "log_probs": "Are the options that a checkpoint does not show right (--set; see --list)?",
}


if __name__ == "__main__":
    sys.exit(main())
