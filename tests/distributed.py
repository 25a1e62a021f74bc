"""
Training with two processes is training with one that sees the same utterances in each update.

    OMP_NUM_THREADS=1 .venv/bin/python tests/distributed.py

Two comparisons, both without dropout and SpecAugment, where each update sees the whole (partition of the) corpus, and a
third run that only compares the two processes:

* A language model; the two processes have different sentences of the same length. What is tested is the mean of the
  gradients.
* A model on audio, where the second half of the corpus is a copy of the first. So both processes, and one process with
  all, have the same statistics in batch normalisation, which each process takes of its own batches. What is tested is
  all the rest: losses, their normalisation, learning rate, checkpoint.
* A language model on sentences of different lengths, some updates in a sub-epoch: the processes are never equally far
  in it, but must have the same learning rate.

Prints the largest distance of the parameters, relative to how far the training has moved them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import tempfile

import torch
from corpora import noise
from fork_server import import_everything
from forked import Training, run_script
from runs import REPO, SMALL_MODEL, run_tool

VOCAB = "spm_unigram_14"
CONFIG = '''#!rnn.py
"""Config {name}, which keeps the parameters of each process before each update."""

import os
import sys

sys.path.insert(0, {repo!r})
with open(os.path.join({repo!r}, "configs", "{name}.config"), encoding="utf8") as _file:
    _code = compile(_file.read(), os.path.join({repo!r}, "configs", "{name}.config"), "exec")
_own_file, __file__ = __file__, os.path.join({repo!r}, "configs", "{name}.config")
exec(_code)
__file__ = _own_file
_train_step = train_step


def train_step(*, model, **kwargs):
    """Writes rank and number of updates so far with the parameters and the statistics, then does the step."""
    import returnn.frontend as rf
    import torch

    ctx = rf.get_run_ctx()
    if ctx.train_flag:
        folder = os.path.join(os.path.dirname(os.path.dirname(globals()["model"])), "steps")
        os.makedirs(folder, exist_ok=True)
        params = {{name: param.raw_tensor.detach().clone() for name, param in model.named_parameters()}}
        file = os.path.join(folder, f"rank{{os.environ.get('RANK', '0')}}.step{{int(ctx.step)}}.pt")
        torch.save({{"params": params, "epoch": int(ctx.epoch), "pid": os.getpid()}}, file + ".tmp")
        os.replace(file + ".tmp", file)
    _train_step(model=model, **kwargs)
'''


def write_config(folder: str, name: str) -> str:
    """
    :param folder: gets it
    :param name: of a config of the project
    :return: file of a config that is the same, but keeps the parameters before each update (output_dir/steps)
    """
    filename = os.path.join(folder, f"{name}_steps.config")
    with open(filename, "w", encoding="utf8") as file:
        file.write(CONFIG.format(name=name, repo=REPO))
    return filename


def make_corpus(folder: str, *, num_train: int) -> None:
    """
    :param folder: gets data/demo
    :param num_train: utterances, of the same length all; the second half is a copy of the first
    """
    import soundfile

    words = ["ONE", "TWO", "SIX", "TEN"]
    texts = [" ".join(order) for order in itertools.permutations(words)]
    for part, number in (("train", num_train), ("dev", 2)):
        place = os.path.join(folder, "source", part, "19", "198")
        os.makedirs(place)
        with open(os.path.join(place, "19-198.trans.txt"), "w", encoding="utf8") as file:
            for i in range(number):
                source = i % (num_train // 2)
                soundfile.write(os.path.join(place, f"19-198-{i:04}.flac"), noise(1.0, seed=source), 16_000)
                file.write(f"19-198-{i:04} {texts[source]}\n")
    with open(os.path.join(folder, "text.txt"), "w", encoding="utf8") as file:
        file.writelines(text + "\n" for text in texts)
    args = ("--workers", "1", "--corpus", "demo", "--vocab", VOCAB, "--lm-text", "text.txt")
    run_tool("prepare_librispeech", "source", "data/demo", *args, cwd=folder)


def free_port() -> int:
    """:return: a TCP port that nobody uses"""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Rank:
    """Environment of a process, as torchrun sets it."""

    def __init__(self, rank: int, size: int, port: int):
        self.env = {
            **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(size)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }

    def __call__(self) -> None:
        """Called in the process."""
        os.environ.update(self.env)


def run_ranks(training: Training, size: int) -> None:
    """Runs it with so many processes."""
    port = free_port()
    for pid in [training.start(prepare=Rank(rank, size, port)) for rank in range(size)]:
        training.finish(pid)


def load_steps(output: str, rank: int) -> list[dict[str, torch.Tensor]]:
    """:return: the parameters before each update"""
    folder = os.path.join(output, "steps")
    res = []
    while os.path.isfile(filename := os.path.join(folder, f"rank{rank}.step{len(res)}.pt")):
        res.append(torch.load(filename, weights_only=True)["params"])
    return res


WITHOUT_EFFECT = ("conv_block.depthwise_conv.bias", "conv_block.norm.running_mean")
"""
A bias before batch normalisation, which subtracts the mean again: its gradient is zero but for rounding, and Adam makes
steps of the usual size from rounding errors. The running mean moves with the bias, so the model does the same.
"""


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], *, ignore: tuple[str, ...] = ()) -> float:
    """
    :param first: parameters
    :param second: parameters
    :param ignore: ends of names
    :return: Euclidean distance of all parameters and statistics that are no counts
    """
    names = [name for name in first if first[name].is_floating_point() and not name.endswith(ignore)]
    return torch.stack([(first[n].double() - second[n].double()).square().sum() for n in names]).sum().sqrt().item()


def between_ranks(double: Training) -> tuple[int, float]:
    """:return: number of updates, largest distance between the parameters of two processes before each update"""
    first, second = load_steps(double.output, 0), load_steps(double.output, 1)
    assert len(first) == len(second) > 3, (len(first), len(second))
    return len(first), max(distance(a, b) for a, b in zip(first, second, strict=True))


def compare(name: str, single: Training, double: Training) -> float:
    """
    Prints a line.

    :return: largest distance between one process and two, over all updates and the last checkpoint, relative to how far
        the training has moved the parameters until then
    """
    number, between = between_ranks(double)
    one, first = load_steps(single.output, 0), load_steps(double.output, 0)
    assert len(one) == number, (len(one), number)
    last = f"models/epoch.{single.options['num_epochs']:03}.pt"
    one.append(torch.load(os.path.join(single.output, last), weights_only=True)["model"])
    first.append(torch.load(os.path.join(double.output, last), weights_only=True)["model"])
    assert distance(one[0], first[0]) == 0
    worst = max(
        distance(a, b, ignore=WITHOUT_EFFECT) / distance(a, one[0], ignore=WITHOUT_EFFECT)
        for a, b in zip(one[1:], first[1:], strict=True)
    )
    print(f"{name}: {len(one) - 1} updates, relative distance {worst:.2e}, between ranks {between:.2e}", flush=True)
    assert between == 0, "the processes have different parameters"
    return worst


def main() -> int:
    """:return: 0 if both are equal"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="keep all files here instead of a temporary folder")
    args = parser.parse_args()
    folder = os.path.abspath(args.folder or tempfile.mkdtemp(prefix="distributed_"))
    make_corpus(folder, num_train=8)
    import_everything()
    common = {"vocab": VOCAB, "num_epochs": 6, "num_workers": 0, "weight_decay": 0.01}
    no_noise = {"enc_dropout": 0, "enc_att_dropout": 0, "enc_input_dropout": 0, "dec_dropout": 0, "dec_att_dropout": 0}
    no_noise |= {"dec_zoneout_cell": 0, "dec_zoneout_output": 0, "use_specaugment": False}
    lm = {**common, "partition_epoch": 2, "batch_size": 100_000, "dropout": 0, "embed_dim": 16, "lstm_dim": 32}
    audio = {**common, **SMALL_MODEL, **no_noise, "train_seq_ordering": "default", "batch_size": 100 * 16_000}
    worst = {}
    for name, config, options in (("language model", "demo_lm_train", lm), ("audio", "demo_train", audio)):
        file = write_config(folder, config)
        single = Training(file, options, folder, f"output/{config}_1")
        double = Training(file, options, folder, f"output/{config}_2")
        single.finish()
        run_ranks(double, 2)
        worst[name] = compare(name, single, double)
    with open(os.path.join(folder, "uneven.txt"), "w", encoding="utf8") as file:
        file.writelines(f"{'ONE ' * (1 + number % 7)}TEN\n" for number in range(40))
    uneven = {**lm, "train_texts": "uneven.txt", "batch_size": 40, "partition_epoch": 1, "num_epochs": 2}
    double = Training(write_config(folder, "demo_lm_train"), uneven, folder, "output/uneven")
    run_ranks(double, 2)
    number, between = between_ranks(double)
    print(f"sentences of different lengths: {number} updates, between ranks {between:.2e}", flush=True)
    return int(max(worst.values()) > TOLERANCE or between > 0)


TOLERANCE = 3e-5

if __name__ == "__main__":
    run_script(main)
