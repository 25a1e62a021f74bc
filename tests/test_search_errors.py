"""Search errors: counts against the definition by enumeration on toys, kinds of utterances, audit, beam curve, tool."""

from __future__ import annotations

import itertools
import json
import os
import random

import pytest
import torch
from brute_force import NEG_INF, TableScorer, log_sum, path_scores, random_posteriors, scorer_set
from tiny_setup import make_tiny_setup
from tool_runs import ROOT, call_tool, run_tool

from recog.analysis.beam_curve import beam_curve, plot_beam_curve
from recog.analysis.runs import AnalysisError, Run
from recog.analysis.search_errors import audit_forced_scores, count_search_errors
from recog.analysis.segmentation import segmentations
from recog.forced_score import forced_scores
from recog.forward import nbest_header
from recog.label_sync import label_sync_search
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance, load_nbest
from recog.options import CtcOptions, LabelSyncOptions, TimeSyncOptions
from recog.time_sync import time_sync_search

NUM_UTTS, V, T = 40, 4, 4


class Toy:
    """Random models of 40 utterances with 3 labels and 4 frames. References: half random, half the best sequences."""

    def __init__(self, seed: int):
        opts = dict(max_len=T, num_utts=NUM_UTTS)
        self.tables = {name: TableScorer(V, seed=seed + i, **opts) for i, name in enumerate(("att", "lm"))}
        self.ctc = random_posteriors(NUM_UTTS, T, V, seed=seed + 9)
        self.paths = {}
        rng = random.Random(seed)
        # References of up to 4 labels: those with repeated labels may need more frames than there are.
        self.refs = [tuple(rng.randrange(1, V) for _ in range(rng.randrange(T + 1))) for _ in range(NUM_UTTS)]

    def use_best_references(self, opts):
        """Every second reference becomes the sequence with the best score of all."""
        for u in range(0, NUM_UTTS, 2):
            sequences = (s for n in range(T + 1) for s in itertools.product(range(1, V), repeat=n))
            self.refs[u] = max(sequences, key=lambda labels: self.true_score(opts, labels, u))

    def scorers(self, opts):
        return scorer_set(self.tables, {"att": opts.att_scale, "lm": opts.lm_scale}, num_labels=V)

    def search(self, opts):
        if isinstance(opts, TimeSyncOptions):
            result = time_sync_search(scorers=self.scorers(opts), ctc=self.ctc, opts=opts)
        else:
            lengths = torch.full((NUM_UTTS,), T)
            result = label_sync_search(scorers=self.scorers(opts), ctc=self.ctc, frame_lengths=lengths, opts=opts)
        return self.run("search", opts, result)

    def forced(self, opts, hyps):
        """:param hyps: for each utterance, label sequences"""
        num = max(map(len, hyps))
        labels = torch.zeros((NUM_UTTS, num, T), dtype=torch.int64)
        lengths = torch.zeros((NUM_UTTS, num), dtype=torch.int64)
        for u, sequences in enumerate(hyps):
            for k, sequence in enumerate(sequences):
                labels[u, k, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
                lengths[u, k] = len(sequence)
        result = forced_scores(
            scorers=self.scorers(opts), ctc=self.ctc, labels=labels, label_lengths=lengths, opts=opts
        )
        return self.run("forced", opts, result)

    def run(self, name, opts, result):
        header = nbest_header(opts, CtcOptions(), options=vars(opts) | {"beam_size": 0}, vocab={"num_labels": V})
        utts = []
        for u in range(NUM_UTTS):
            hyps = {}
            for k in range(result.scores.shape[1]):
                labels = result.labels[u, k, : result.label_lengths[u, k]].tolist()
                if result.scores[u, k] > NEG_INF:
                    scores = {n: float(value[u, k]) for n, value in result.components.items()}
                    hyps[tuple(labels)] = Hypothesis(labels, text_of(labels), float(result.scores[u, k]), scores)
            hyps = sorted(hyps.values(), key=lambda hyp: -hyp.score)
            error = None if hyps else "impossible"
            utts.append(Utterance(f"dev/{u:02}", 1.0, T, text_of(self.refs[u]), hyps, error))
        return Run(name, f"{name}.jsonl", header, utts)

    def true_score(self, opts, labels, utt):
        """By the definition: enumeration of all alignments"""
        label_part = opts.att_scale * self.tables["att"].score(labels, utt, eos=True)
        label_part += opts.lm_scale * self.tables["lm"].score(labels, utt, eos=True) if opts.lm_scale else 0.0
        if utt not in self.paths:
            self.paths[utt] = path_scores(self.ctc.log_probs[utt].tolist())
        paths = self.paths[utt].get(tuple(labels))
        if paths is None:
            return NEG_INF
        best = isinstance(opts, TimeSyncOptions) and opts.recombination == "max"
        total = label_part + opts.ctc_scale * (max(paths) if best else log_sum(paths))
        return total / (len(labels) + 1) ** opts.length_norm_exponent


def text_of(labels):
    return " ".join(f"w{label}" for label in labels)


LINEAR = {"blank_scale": "ctc", "repeat_scale": "ctc"}
SEARCHES = {
    "label_sync": LabelSyncOptions(beam_size=1, att_scale=0.6, ctc_scale=0.4),
    "label_sync_lm": LabelSyncOptions(beam_size=2, att_scale=0.6, ctc_scale=0.4, lm_scale=0.5),
    "label_sync_norm": LabelSyncOptions(beam_size=1, att_scale=0.6, ctc_scale=0.4, length_norm_exponent=1.0),
    "time_sync_max": TimeSyncOptions(beam_size=1, att_scale=0.6, ctc_scale=0.4, **LINEAR),
    "time_sync_sum": TimeSyncOptions(beam_size=2, att_scale=0.6, ctc_scale=0.4, recombination="sum", **LINEAR),
    "time_sync_sum_lm": TimeSyncOptions(
        beam_size=1, att_scale=0.3, ctc_scale=0.7, lm_scale=0.4, recombination="sum", **LINEAR
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_counts_are_the_true_ones(name):
    opts, toy = SEARCHES[name], Toy(seed=len(name))
    toy.use_best_references(opts)
    found = toy.search(opts)
    firsts = [tuple(utt.hyps[0].labels) for utt in found.utterances]
    forced = toy.forced(opts, [[ref, first] for ref, first in zip(toy.refs, firsts, strict=True)])
    errors = count_search_errors(found, forced)
    true_kinds = {}
    for u, (ref, first) in enumerate(zip(toy.refs, firsts, strict=True)):
        ref_score, first_score = toy.true_score(opts, ref, u), toy.true_score(opts, first, u)
        if ref == first:
            kind = "correct"
        elif ref_score == NEG_INF:
            kind = "impossible"
        else:
            assert abs(ref_score - first_score) > 0.0015  # no ties in this toy
            kind = "search_error" if ref_score > first_score else "model_error"
        true_kinds[f"dev/{u:02}"] = kind
    assert {utt.seq_tag: utt.kind for utt in errors.utterances} == true_kinds
    assert errors.count("model_error") > 5 and errors.count("search_error") > 2 and errors.count("correct") > 2
    gaps = [utt.gap for utt in errors.utterances if utt.gap is not None]
    assert gaps == sorted(gaps, reverse=True)
    for utt in errors.utterances:
        if utt.gap is not None:
            assert sum(utt.component_gaps.values()) == pytest.approx(utt.gap, abs=1e-5)
    # The hypotheses are forced to their own labels: gap 0, but for alignments that the search has pruned.
    audit = audit_forced_scores(found, forced)
    assert audit.num_hyps >= NUM_UTTS
    if "sum" in name:
        assert audit.num_first_higher == audit.num_different
    elif "time_sync" not in name:
        assert audit.num_different == 0 and audit.max_gap < 1e-4


def test_no_search_errors_with_a_full_beam():
    for opts in (SEARCHES["label_sync"], SEARCHES["time_sync_sum"]):
        toy = Toy(seed=3)
        full = type(opts)(**{**vars(opts), "beam_size": 200})
        errors = count_search_errors(toy.search(full), toy.forced(opts, [[ref] for ref in toy.refs]))
        assert errors.count("search_error") == 0 and errors.count("model_error") > 0
        assert errors.wer == errors.wer_without_search_errors > 0


class LetterVocab:
    """A vocabulary with given sub-words."""

    type, eos_index = "bpe", 0

    def __init__(self, names):
        self.names = ["<s>", *names]
        self.num_labels = len(self.names)

    def label_name(self, label):
        return self.names[label]

    def labels_to_text(self, labels):
        return " ".join(self.names[label] for label in labels).replace("@@ ", "")

    def text_to_labels(self, text):
        return [self.names.index(name) for name in {"ab a": ["a@@", "b", "a"], "b": ["b"]}[text]]


def test_segmentations():
    vocab = LetterVocab(["a@@", "b@@", "a", "b", "ab"])
    names = [[vocab.names[i] for i in labels] for labels in segmentations(vocab, "ab a", number=5)]
    assert names == [["a@@", "b", "a"], ["ab", "a"]]  # the canonical one first, though it is longer
    assert segmentations(vocab, "ab a", number=1) == [[1, 4, 3]]
    assert segmentations(vocab, "b", number=9) == [[4]]


HEADER = NBestHeader("label_sync", {"ctc": 1.0}, options={"ctc_eos": "merge"}, vocab={"num_labels": 9})


def hyp(labels, text, score):
    return Hypothesis(labels, text, score, {"ctc": score})


def make_run(name, hyps, *, ref="a b", header=HEADER):
    """:param hyps: of each utterance"""
    return Run(
        name,
        f"{name}.jsonl",
        header,
        [Utterance(f"dev/{i}", 1.0, 5, ref, h, None if h else "none") for i, h in enumerate(hyps)],
    )


CASES = [
    # kind, hypotheses of the search, forced
    ("correct", [hyp([1, 2], "a b", -1.0)], [hyp([1, 2], "a b", -1.0)]),
    ("search_error", [hyp([1], "a", -2.0)], [hyp([1, 2], "a b", -1.0)]),
    ("model_error", [hyp([1], "a", -1.0)], [hyp([1, 2], "a b", -2.0)]),
    ("tie", [hyp([1], "a", -1.0)], [hyp([1, 2], "a b", -1.0 + 1e-4)]),
    ("segmentation", [hyp([3], "a b", -1.0)], [hyp([1, 2], "a b", -2.0)]),
    ("search_error", [hyp([3], "a b", -2.0)], [hyp([1, 2], "a b", -1.0)]),
    ("impossible", [hyp([1], "a", -1.0)], []),
    ("search_error", [], [hyp([1, 2], "a b", -1.0)]),
    ("no_hypothesis", [], []),
    # The search has lost alignments of its own hypothesis: by its exact score it is better than the reference.
    ("model_error", [hyp([1], "a", -3.0)], [hyp([1], "a", -1.0), hyp([1, 2], "a b", -2.0)]),
]


def test_kinds():
    errors = count_search_errors(
        make_run("r", [found for _, found, _ in CASES]), make_run("f", [forced for _, _, forced in CASES])
    )
    kinds = {utt.seq_tag: utt.kind for utt in errors.utterances}
    assert kinds == {f"dev/{i}": kind for i, (kind, _, _) in enumerate(CASES)}
    by_tag = {utt.seq_tag: utt for utt in errors.utterances}
    assert by_tag["dev/7"].gap is None and by_tag["dev/7"].word_errors == 2
    record = errors.as_dict()
    json.dumps(record, allow_nan=False)
    assert record["counts"]["search_error"] == 3 and record["search_errors_without_word_errors"] == 1
    assert record["percent"]["tie"] == 10.0
    assert record["wer_percent"] == 100 * 9 / 20 and record["wer_percent_without_search_errors"] == 100 * 6 / 20
    audit = audit_forced_scores(make_run("r", [c[1] for c in CASES]), make_run("f", [c[2] for c in CASES]))
    assert (audit.num_hyps, audit.num_different, audit.num_first_higher, audit.max_gap) == (2, 1, 1, 2.0)


def test_segmentations_of_the_reference():
    run = make_run("r", [[hyp([4], "a", -2.0)]])
    forced = make_run("f", [[hyp([3], "a b", -1.0), hyp([1, 2], "a b", -3.0)]])
    with pytest.raises(AnalysisError, match="2 label sequences have the words of the reference"):
        count_search_errors(run, forced)
    assert count_search_errors(run, forced, best_segmentation=True).count("search_error") == 1
    canonical = count_search_errors(run, forced, labels_of=lambda text: [1, 2])
    assert canonical.count("model_error") == 1 and canonical.utterances[0].ref_score == -3.0
    with pytest.raises(AnalysisError, match="no reference has a score"):
        count_search_errors(run, forced, labels_of=lambda text: [5])


def test_not_comparable():
    run = make_run("r", [[hyp([1], "a", -2.0)]])
    for header, message in (
        (NBestHeader("label_sync", {"ctc": 0.9}, vocab=HEADER.vocab), "another scales"),
        (NBestHeader("label_sync", {"ctc": 1.0}, 1.0, vocab=HEADER.vocab), "another length_norm_exponent"),
        (NBestHeader("label_sync", {"ctc": 1.0}, vocab={"num_labels": 8}), "another vocabulary"),
        (NBestHeader("x", {"ctc": 1.0}, options={"ctc_eos": "keep"}, vocab=HEADER.vocab), "another ctc_eos"),
    ):
        with pytest.raises(AnalysisError, match=message):
            count_search_errors(run, make_run("f", [[hyp([1, 2], "a b", -2.0)]], header=header))
    with pytest.raises(AnalysisError, match="another reference"):
        count_search_errors(run, make_run("f", [[hyp([1, 2], "a b", -2.0)]], ref="a c"))
    with pytest.raises(AnalysisError, match="no reference with a score for utterance 'dev/0'"):
        count_search_errors(run, make_run("f", []))


def write(run, filename):
    os.makedirs(os.path.dirname(filename), exist_ok=True)
    with NBestWriter(str(filename), run.header) as writer:
        for utt in run.utterances:
            writer.write(utt)


def test_beam_curve(tmp_path):
    toy = Toy(seed=5)
    toy.use_best_references(SEARCHES["label_sync"])
    runs = {}
    for beam in (1, 2, 3, 200):
        opts = LabelSyncOptions(beam_size=beam, att_scale=0.6, ctc_scale=0.4)
        runs[beam] = toy.search(opts)
    forced = toy.forced(opts, [[ref] for ref in toy.refs])
    points = beam_curve(runs, forced=forced)
    assert [point.beam_size for point in points] == [1, 2, 3, 200]
    worse = [point.worse_than_best_known for point in points]
    assert worse[0] > worse[2] >= worse[3] == 0.0 and worse == sorted(worse, reverse=True)
    # The full beam finds the best of all sequences, so this is the true number of search errors.
    best = [
        max(toy.true_score(opts, tuple(h.labels), u) for h in utt.hyps) for u, utt in enumerate(runs[200].utterances)
    ]
    true = sum(
        toy.true_score(opts, tuple(utt.hyps[0].labels), u) < best[u] - 1e-3 for u, utt in enumerate(runs[1].utterances)
    )
    assert worse[0] == 100 * true / NUM_UTTS
    assert points[0].search_errors > points[-1].search_errors == 0.0
    for point in points:
        assert point.search_errors <= point.worse_than_best_known and point.real_time_factor is None
    for name in ("curve.png", "curve.svg"):
        plot_beam_curve(points, str(tmp_path / name), title="toy")
        assert (tmp_path / name).stat().st_size > 5000
    assert beam_curve(runs)[0].search_errors is None


def test_tool(tmp_path):
    toy, opts = Toy(seed=11), SEARCHES["label_sync"]
    toy.use_best_references(opts)
    found = toy.search(opts)
    write(found, str(tmp_path / "demo" / "nbest.jsonl"))
    first = [[ref, tuple(utt.hyps[0].labels)] for ref, utt in zip(toy.refs, found.utterances, strict=True)]
    write(toy.forced(opts, first), str(tmp_path / "forced" / "nbest.jsonl"))
    args = ["demo/nbest.jsonl", "forced/nbest.jsonl", "--json", "e.json", "--list", "3"]
    result = run_tool("search_errors", *args, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (record,) = json.loads((tmp_path / "e.json").read_text())["pairs"]
    expected = count_search_errors(found, toy.forced(opts, first))
    assert record["counts"]["search_error"] == expected.count("search_error") > 0
    assert record["audit"]["num_different"] == 0 and record["audit"]["num_hyps"] >= NUM_UTTS
    assert record["utterances"][0]["gap"] == pytest.approx(expected.utterances[0].gap, abs=1e-5)
    line = next(line for line in result.stdout.splitlines() if line.startswith("demo ")).split()
    assert line[4] == f"{expected.percent('search_error'):.2f}"
    assert result.stdout.count("gap ") >= min(3, expected.count("search_error"))
    wrong = call_tool("search_errors", "demo/nbest.jsonl", cwd=tmp_path)
    assert wrong.returncode == 2 and "pairs of files" in wrong.stderr
    wrong = call_tool("search_errors", "demo/nbest.jsonl", "missing.jsonl", cwd=tmp_path)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: missing.jsonl does not exist")


BEAM_CONFIG = """#!rnn.py
# The n best of a fixed space of hypotheses, after a "search" that misses more of them with a smaller beam.
import json, os, sys
sys.path.insert(0, ROOT)
from configs.base.run import command_line_options
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance
opts = command_line_options()
beam, folder = int(opts["beam_size"]), opts["output_dir"]
os.makedirs(folder)
with NBestWriter(folder + "/nbest.jsonl", NBestHeader("label_sync", {"ctc": 1.0})) as writer:
    for i in range(8):
        score, text = (-1.0, "right") if i < beam else (-2.0, "wrong")
        writer.write(Utterance(f"dev/{i}", 1.0, 5, "right", [Hypothesis([i], text, score, {"ctc": score})]))
with open(folder + "/wer.json", "w") as file:
    json.dump({"time": {"total_real_time_factor": 0.01 * beam}}, file)
sys.exit(0)
"""


def test_tool_over_beams(tmp_path):
    (tmp_path / "toy.config").write_text(BEAM_CONFIG.replace("ROOT", repr(ROOT)))
    forced = Run(
        "f",
        "",
        NBestHeader("label_sync", {"ctc": 1.0}),
        [Utterance(f"dev/{i}", 1.0, 5, "right", [hyp([i], "right", -1.0)]) for i in range(8)],
    )
    write(forced, str(tmp_path / "f" / "nbest.jsonl"))
    args = ["--beams", "4,1", "toy.config", "--parts", "dev", "--forced", "f/nbest.jsonl", "--plot", "b.svg"]
    result = call_tool("search_errors", *args, "--json", "b.json", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    points = json.loads((tmp_path / "b.json").read_text())["points"]
    # Labels of wrong hypotheses are those of the reference, which scores better by 1: the audit's business, no error.
    assert [p["wer"] for p in points] == [87.5, 50.0]
    assert [p["worse_than_best_known"] for p in points] == [87.5, 50.0]
    assert [p["real_time_factor"] for p in points] == [0.01, 0.04]
    assert (tmp_path / "b.svg").read_text().startswith("<?xml")
    assert os.path.isfile(tmp_path / "output" / "toy_beams" / "beam4" / "nbest.jsonl")


def test_tool_runs_everything(tmp_path_factory):
    """Search, forced references, forced hypotheses by rnn.py: each hypothesis gets its own score again."""
    setup = make_tiny_setup(str(tmp_path_factory.mktemp("errors")))
    configs = [os.path.join(ROOT, "configs", f"demo_{name}_timesync.config") for name in ("recog", "forced")]
    options = ["++data_dir", setup.data_dir, "++vocab", setup.vocab.name, "++load", setup.checkpoints["aed"]]
    options += ["++beam_size", 4, "++recombination", "sum", "++exact_ctc", True]
    vocab = os.path.join(setup.data_dir, "vocab", f"{setup.vocab.name}.json")
    args = ["--run", *configs, "--parts", "dev", "--json", "e.json", "--segmentations", 5, "--vocab", vocab, *options]
    result = call_tool("search_errors", *args, cwd=setup.folder)
    assert result.returncode == 0, result.stdout + result.stderr
    with open(os.path.join(setup.folder, "e.json")) as file:
        (record,) = json.load(file)["pairs"]
    assert record["run"] == "demo_recog_timesync"
    assert record["num_utts"] == 5 == sum(record["counts"].values())
    assert record["audit"]["num_hyps"] == 20 and record["audit"]["num_different"] == 0
    # References of random models: some have too many labels for their frames, the others are model or search errors.
    assert record["counts"]["impossible"] > 0 and record["counts"]["impossible"] < 5
    best = record["of_best_segmentation"]
    assert sum(best["counts"].values()) == 5 and best["num_better_than_canonical"] >= 0
    given = os.path.join(setup.folder, "output", "demo_recog_timesync_errors", "segmentations5.jsonl")
    for utt in load_nbest(given)[1]:
        assert utt.hyps[0].labels == setup.vocab.text_to_labels(utt.ref) and len(utt.hyps) > 1
        assert {hyp.text for hyp in utt.hyps} == {utt.ref}
    hyps = os.path.join(setup.folder, "output", "demo_recog_timesync_errors", "hypotheses", "nbest.jsonl")
    recog, _ = (hyps.replace("hypotheses", name) for name in ("search", "references"))
    wrong = call_tool("search_errors", recog, hyps, cwd=setup.folder)
    assert wrong.returncode == 1 and "has forced scores of hypotheses" in wrong.stderr
