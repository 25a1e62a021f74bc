#!/usr/bin/env python3
"""
Cost of the attention decoder in training, in the size of the LibriSpeech model, with random parameters and data.

Measures forward and backward pass of the decoder's loss (CPU time, one thread) of three ways that run in turn in this
process, as medians: also meaningful on a machine that does other work. Checks before that all give the same loss and
gradients.

- ours: AttentionDecoder.teacher_forcing, the recurrence with gradients written out (rf_models/attention_loop.py)
- recurrence in frontend: readout and softmax outside of the loop, as ours, but the recurrence in the RETURNN frontend
- all in frontend: the straightforward loop over labels: embedding, full LSTM input, readout and softmax in each step

  python tools/benchmark_training.py --json training.json
  python tools/benchmark_training.py --batch 4 --frames 150 --labels 20 --rounds 3
"""

from __future__ import annotations

import datetime
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable

# Before torch is loaded: the unit of all figures is one thread.
os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor

from configs.base import ls960
from configs.base.run import BEHAVIOR_VERSION
from recog.progress import Progress
from recog.standalone import use_returnn
from rf_models.decoder import AttentionDecoder, AttentionMemory
from tools.cli import make_parser, write_json

__all__ = ["main"]

TOLERANCE = 1e-3
"""Largest relative difference of the gradient of any parameter (single precision, sums in different orders)."""


class Batch:
    """A decoder, encoder states, labels; and the ways to get the loss (sum over labels)."""

    def __init__(self, *, batch: int, frames: int, labels: int, vocab: int):
        generator = torch.Generator().manual_seed(1)
        self.batch_dim = Dim(batch, name="batch")
        self.enc_dim = Dim(ls960.setup.model.enc_dim, name="enc")
        self.target_dim = Dim(vocab, name="labels")
        self.decoder = AttentionDecoder(self.enc_dim, self.target_dim, ls960.setup.model)
        for param in self.decoder.parameters():
            param.raw_tensor.data.normal_(std=0.05, generator=generator)
        # Sorted batches of real data: lengths of audio differ little, those of labels by some 20 %.
        self.frames_dim = self._lengths("frames", frames, 0.05)
        self.labels_dim = self._lengths("labels", labels, 0.2)
        raw = torch.randn(batch, frames, self.enc_dim.dimension, generator=generator).requires_grad_()
        self.enc = Tensor("enc", [self.batch_dim, self.frames_dim, self.enc_dim], "float32", raw_tensor=raw)
        self.enc.feature_dim = self.enc_dim
        raw = torch.randint(0, vocab, (batch, labels), generator=generator, dtype=torch.int32)
        dims = [self.batch_dim, self.labels_dim]
        self.labels = Tensor("labels", dims, "int32", raw_tensor=raw, sparse_dim=self.target_dim)

    def _lengths(self, name: str, longest: int, spread: float) -> Dim:
        num = self.batch_dim.dimension
        lengths = [max(1, round(longest * (1 - spread * i / max(1, num - 1)))) for i in range(num)]
        raw = torch.tensor(lengths, dtype=torch.int32)
        return Dim(Tensor(name, [self.batch_dim], "int32", raw_tensor=raw), name=name)

    def memory(self) -> AttentionMemory:
        return self.decoder.transform_encoder(self.enc, axis=self.frames_dim)

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_probs = rf.log_softmax(logits, axis=self.target_dim)
        return rf.cross_entropy(estimated=log_probs, estimated_type="log-probs", target=labels, axis=self.target_dim)

    def loss(self, logits: Tensor, labels: Tensor) -> torch.Tensor:
        loss = self.label_loss(logits, labels)
        return rf.reduce_sum(loss, axis=loss.dims).raw_tensor

    def ours(self) -> torch.Tensor:
        decoder = self.decoder
        return self.loss(
            *decoder.teacher_forcing(self.labels, spatial_dim=self.labels_dim, memory=self.memory(), pack=True)
        )

    def recurrence_in_frontend(self) -> torch.Tensor:
        decoder, memory, dims = self.decoder, self.memory(), [self.batch_dim, self.labels_dim]
        embed = rf.shift_right(decoder.embed(self.labels), axis=self.labels_dim, pad_value=0.0)
        w_embed, w_context = decoder.s.split_weights()
        x = decoder.s.embed_part(embed, w_embed)
        state = decoder.default_initial_state(batch_dims=[self.batch_dim], memory=memory)
        steps = []
        for i in range(self.labels.raw_tensor.shape[1]):
            x_i = rf.gather(x, axis=self.labels_dim, indices=i)
            s, state = decoder._step(x_i, w_context, memory=memory, state=state)
            steps.append((s, state.att))
        s, att = (rf.stack(list(parts), out_dim=self.labels_dim)[0] for parts in zip(*steps, strict=True))
        labels, packed_dim = rf.pack_padded(self.labels, dims=dims, enforce_sorted=False)
        s, embed, att = (
            rf.pack_padded(t, dims=dims, enforce_sorted=False, out_dim=packed_dim)[0] for t in (s, embed, att)
        )
        return self.loss(decoder.readout(s, embed, att), labels)

    def all_in_frontend(self) -> torch.Tensor:
        decoder, memory = self.decoder, self.memory()
        state = decoder.default_initial_state(batch_dims=[self.batch_dim], memory=memory)
        embed = rf.zeros([self.batch_dim, decoder.embed_dim], feature_dim=decoder.embed_dim)
        steps = []
        for i in range(self.labels.raw_tensor.shape[1]):
            logits, state = decoder.step(embed, memory=memory, state=state)
            label = rf.gather(self.labels, axis=self.labels_dim, indices=i)
            steps.append(self.label_loss(logits, label))
            embed = decoder.embed(label)
        loss, _ = rf.stack(steps, out_dim=self.labels_dim)
        return rf.reduce_sum(loss, axis=[self.batch_dim, self.labels_dim]).raw_tensor

    def gradients(self, way: Callable[[], torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
        """:return: loss; gradients of parameters and encoder states"""
        named = {name: param.raw_tensor for name, param in self.decoder.named_parameters()}
        named["enc"] = self.enc.raw_tensor
        for raw in named.values():
            raw.grad = None
        loss = way()
        loss.backward()
        return loss.item(), {name: raw.grad for name, raw in named.items()}


def check(batch: Batch, ways: dict[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """:return: way -> largest relative difference of loss or gradients to the last way, without dropout"""
    rf.init_train_step_run_ctx(train_flag=False, step=0, epoch=1)
    results = {name: batch.gradients(way) for name, way in ways.items()}
    loss, grads = results[list(ways)[-1]]
    return {
        name: max(
            abs(its_loss / loss - 1),
            *(float((its_grads[key] - grad).norm() / grad.norm()) for key, grad in grads.items()),
        )
        for name, (its_loss, its_grads) in results.items()
    }


def measure(batch: Batch, ways: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, dict[str, float]]:
    """:return: way -> medians of the CPU seconds of "forward", "backward", "total", with dropout and zoneout"""
    rf.init_train_step_run_ctx(train_flag=True, step=0, epoch=1)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    progress = Progress("benchmark")
    for i in range(rounds):
        for j, (name, way) in enumerate(ways.items()):
            for param in batch.decoder.parameters():
                param.raw_tensor.grad = None
            progress.update((i * len(ways) + j) / (rounds * len(ways)), name)
            start = time.process_time()
            loss = way()
            middle = time.process_time()
            loss.backward()
            times[name].append((middle - start, time.process_time() - middle))
    return {
        name: {
            "forward": statistics.median(forward for forward, _ in pairs),
            "backward": statistics.median(backward for _, backward in pairs),
            "total": statistics.median(map(sum, pairs)),
        }
        for name, pairs in times.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module docstring. :return: exit code, 1 if the ways differ"""
    parser = make_parser(__doc__)
    for name, default, text in (
        ("batch", 12, "utterances"),
        ("frames", 220, "encoder frames of the longest utterance (60 ms each)"),
        ("labels", 40, "labels of the longest one"),
        ("vocab", 10_025, "labels in the vocabulary"),
        ("rounds", 5, "measurements of each way"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    args = parser.parse_args(argv)
    sizes = {name: getattr(args, name) for name in ("batch", "frames", "labels", "vocab")}
    if min(args.rounds, *sizes.values()) < 1:
        parser.error("expected whole numbers above 0")
    use_returnn(BEHAVIOR_VERSION)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batch = Batch(**sizes)
        ways = {
            "ours": batch.ours,
            "recurrence in frontend": batch.recurrence_in_frontend,
            "all in frontend": batch.all_in_frontend,
        }
        differences = check(batch, ways)
        times = measure(batch, ways, args.rounds)
    finally:
        torch.set_num_threads(num_threads)
    ours = times["ours"]["total"]
    command = f"python tools/benchmark_training.py {shlex.join(sys.argv[1:] if argv is None else argv)}".strip()
    print(f"{datetime.date.today()}, 1 thread, CPU seconds, medians of {args.rounds}: {command}\n")
    print(f"{'':24}{'forward':>9}{'backward':>10}{'total':>9}{'ours / it':>11}{'difference':>12}")
    for name, row in times.items():
        numbers = f"{row['forward']:9.3f}{row['backward']:10.3f}{row['total']:9.3f}{ours / row['total']:11.2f}"
        print(f"{name:24}{numbers}{differences[name]:12.1e}")
    if args.json:
        content = {
            "command": command,
            "date": str(datetime.date.today()),
            "torch": torch.__version__,
            **sizes,
            "ways": {
                name: {**row, "ours_ratio": ours / row["total"], "difference": differences[name]}
                for name, row in times.items()
            },
        }
        write_json(args.json, content)
    if max(differences.values()) > TOLERANCE:
        print(f"error: loss or gradients differ by more than {TOLERANCE}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
