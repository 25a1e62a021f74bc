#!/usr/bin/env python3
"""
Does recognition keep its memory? Recognises many short utterances with a tiny model, as a user would (rnn.py), and
watches the resident memory of the process.

  python tests/memory_growth.py                                      # 2,000 utterances, about 5 minutes
  python tests/memory_growth.py --num-utts 160 --batch 4 --max-growth 12 --runs timesync

A tiny model makes the test hard: of a large one, the parameters alone would hide what grows. The utterances are 0.4 to
1.0 s long. Growth is the mean of the last tenth of the batches against the mean of the second tenth (the first is
warm-up). Exit code 1 if it exceeds --max-growth.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from corpora import make_librispeech
from runs import config_file, environment
from tiny_models import AED, LSTM_LM, TRANSFORMER_LM, save_model

from recog.nbest import load_nbest
from recog.vocab import load_vocab
from tools.prepare_librispeech import main as prepare_librispeech

VOCAB = "spm_unigram_40"
RUNS = {"labelsync": ("demo_recog_labelsync_lm", "transformer_lm"), "timesync": ("demo_recog_timesync_lm", "lstm_lm")}


def make_data(folder: str, num_utts: int) -> dict[str, str]:
    """
    :param folder: gets corpus and models
    :param num_utts: to recognise
    :return: options of the runs; names of the language models' checkpoints
    """
    source, data_dir = os.path.join(folder, "source"), os.path.join(folder, "data")
    make_librispeech(source, {"train": 7}, seconds=1.0)
    make_librispeech(source, {"dev": num_utts}, seqs_per_chapter=50, seconds=0.4, longer=0.6 / num_utts)
    arguments = [source, data_dir, "--workers", "1", "--corpus", "demo", "--vocab", VOCAB]
    assert prepare_librispeech(arguments) == 0
    vocab = load_vocab(os.path.join(data_dir, "vocab", VOCAB + ".json"))
    files = {}
    for name, opts in {"load": AED, "transformer_lm": TRANSFORMER_LM, "lstm_lm": LSTM_LM}.items():
        filename = os.path.join(folder, "models", name + ".pt")
        files[name] = save_model(filename, opts, num_labels=vocab.num_labels, eos_index=vocab.eos_index)
    return {"data_dir": data_dir, **files}


def watch(command: list[str], cwd: str, log_file: str, *, interval: float = 0.02) -> list[tuple[int, float]]:
    """
    :param command: of a run with RETURNN
    :param cwd: current folder
    :param log_file: RETURNN's log, in which the number of the batch stands
    :param interval: seconds between two samples
    :return: number of the batch, resident memory in MiB
    """
    with open(os.path.join(cwd, "stdout"), "w") as out:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    samples, step, position = [], -1, 0
    while process.poll() is None:
        time.sleep(interval)
        if not os.path.isfile(log_file):
            continue
        with open(log_file, encoding="utf8", errors="replace") as file:
            file.seek(position)
            text = file.read()
            position = file.tell()
        if steps := re.findall(r"forward, step (\d+),", text):
            step = int(steps[-1])
        if step >= 0:
            try:
                with open(f"/proc/{process.pid}/statm", encoding="ascii") as file:
                    pages = int(file.read().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                break
            if pages:
                samples.append((step, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
    if process.wait() != 0:
        with open(os.path.join(cwd, "stdout"), encoding="utf8") as out:
            raise RuntimeError(f"the run failed:\n{out.read()[-4000:]}")
    return samples


def growth(samples: list[tuple[int, float]], num_steps: int) -> tuple[float, float]:
    """:return: mean memory in the second and the last tenth of the batches, in MiB"""
    means = []
    for begin, end in ((0.1, 0.2), (0.9, 1.0)):
        values = [memory for step, memory in samples if begin * num_steps <= step < end * num_steps]
        if not values:
            raise RuntimeError(f"no sample between batch {begin * num_steps:.0f} and {end * num_steps:.0f}: too fast")
        means.append(sum(values) / len(values))
    return means[0], means[1]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line without the program; None: of this process
    :return: exit code
    """
    summary, _, epilog = __doc__.strip().partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-utts", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=10, help="utterances in a batch")
    parser.add_argument("--max-growth", type=float, default=5.0, metavar="PERCENT")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--json", metavar="FILE", help="all samples")
    args = parser.parse_args(argv)
    results, failed = {}, False
    with tempfile.TemporaryDirectory() as folder:
        options = make_data(folder, args.num_utts)
        rnn = os.path.join(os.path.dirname(sys.executable), "rnn.py")
        for name in args.runs:
            config, lm = RUNS[name]
            output = os.path.join(folder, "output", name)
            command = [sys.executable, rnn, config_file(config), "++recog_parts", "dev", "++vocab", VOCAB]
            command += ["++data_dir", options["data_dir"], "++load", options["load"], "++lm_checkpoint", options[lm]]
            command += ["++max_seqs", str(args.batch), "++num_workers", "0", "++device", "cpu", "++output_dir", output]
            start = time.monotonic()
            samples = watch(command, folder, os.path.join(output, "returnn.log"))
            seconds = time.monotonic() - start
            num_utts = len(load_nbest(os.path.join(output, "nbest.jsonl"))[1])
            assert num_utts == args.num_utts
            before, after = growth(samples, -(-num_utts // args.batch))
            percent = 100 * (after - before) / before
            failed |= percent > args.max_growth
            results[name] = {"before": before, "after": after, "percent": percent, "samples": samples}
            peak = max(memory for _, memory in samples)
            print(
                f"{config}: {num_utts} utterances, {seconds:.0f} s, {before:.1f} MiB -> {after:.1f} MiB"
                f" ({percent:+.2f} %), peak {peak:.1f} MiB"
            )
    if args.json:
        with open(args.json, "w", encoding="utf8") as file:
            json.dump(results, file)
    if failed:
        print(f"error: more than {args.max_growth:g} %", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
