"""Significance of differences, oracle WERs, merging of n-best lists, the comparing tool."""

from __future__ import annotations

import itertools
import json
import math
import random

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_runs import call_tool, run_tool

from recog.analysis.arrays import count_word_errors, make_arrays
from recog.analysis.significance import compare_words, error_segments, matched_pairs, mcnemar
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance, audit, load_nbest

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=10)


@pytest.mark.parametrize(
    ("ref", "a", "b", "expected"),
    [
        ("a b c d", "a b c d", "a b c d", []),
        ("a b c d e f", "x b c d e f", "a b c d e y", [(1, 0), (0, 1)]),  # two good words and more between
        ("a b c d", "x b c d", "a b c y", [(1, 0), (0, 1)]),  # exactly two
        ("a b c", "x b c", "a b y", [(1, 1)]),  # one good word does not separate
        ("a b c d", "x b c d", "a b z c y", [(1, 2)]),  # an insertion interrupts the good words
        ("a b", "", "a b", [(2, 0)]),
        ("", "x", "", [(1, 0)]),
        ("", "", "", []),
        ("a b", "a b x", "a b", [(1, 0)]),
    ],
)
def test_segments(ref, a, b, expected):
    assert error_segments(ref.split(), a.split(), b.split()) == expected


@settings(max_examples=300, deadline=None)
@given(ref=WORDS, a=WORDS, b=WORDS)
def test_segments_have_all_errors(ref, a, b):
    segments = error_segments(ref, a, b)
    assert sum(s[0] for s in segments) == count_word_errors(ref, a)
    assert sum(s[1] for s in segments) == count_word_errors(ref, b)
    assert [(y, x) for x, y in segments] == error_segments(ref, b, a)


@settings(max_examples=300, deadline=None)
@given(ref=WORDS.filter(bool), hyp=WORDS)
def test_count_word_errors_against_jiwer(ref, hyp):
    result = jiwer.process_words(" ".join(ref), " ".join(hyp))
    assert count_word_errors(ref, hyp) == result.substitutions + result.insertions + result.deletions


def test_mcnemar():
    # By hand: 1 against 8 of 9 fair coins, two-sided: 2 (C(9,0) + C(9,1)) / 2^9.
    right_a = np.array([True] * 5 + [True] + [False] * 8 + [False] * 3)
    right_b = np.array([True] * 5 + [False] + [True] * 8 + [False] * 3)
    result = mcnemar(right_a, right_b)
    assert (result.both, result.only_a, result.only_b, result.neither) == (5, 1, 8, 3)
    assert result.p == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(right_a, right_a).p == 1.0


def test_matched_pairs():
    result = matched_pairs([1, 0, -1, 2, 1])
    mean, variance = 0.6, (0.4**2 * 2 + 0.6**2 + 1.6**2 + 1.4**2) / 4
    assert result.z == pytest.approx(mean / math.sqrt(variance / 5))
    assert result.p == pytest.approx(math.erfc(result.z / math.sqrt(2)))
    assert matched_pairs([]).p == matched_pairs([1]).p == matched_pairs([0, 0]).p == 1.0
    assert matched_pairs([1] * 10).p == pytest.approx(2 / 2**10)


def random_texts(rng, error_rate, num_utts=300):
    for _ in range(num_utts):
        ref = [rng.choice("abcdefgh") for _ in range(12)]
        yield ref, [word if rng.random() > error_rate else "x" for word in ref]


def test_false_alarms_are_as_rare_as_promised():
    """Equally good runs: about 5 % of the p values are below 0.05, not more."""
    alarms = {"matched": 0, "mcnemar": 0, "interval": 0}
    for seed in range(200):
        rng = random.Random(seed)
        triples = []
        for _ in range(60):
            ref = [rng.choice("abcdefgh") for _ in range(12)]
            triples.append((ref, *([w if rng.random() > 0.1 else "x" for w in ref] for _ in range(2))))
        result = compare_words(triples, samples=200)
        alarms["matched"] += result.matched_pairs.p < 0.05
        alarms["mcnemar"] += result.mcnemar.p < 0.05
        low, high = result.difference_interval
        alarms["interval"] += not low <= 0.0 <= high
    assert 2 <= alarms["matched"] <= 20 and alarms["mcnemar"] <= 20 and 2 <= alarms["interval"] <= 26


def test_a_real_difference_is_found():
    rng = random.Random(1)
    triples = [
        (ref, a, [w if w != "x" or rng.random() < 0.5 else r for r, w in zip(ref, a, strict=True)])
        for ref, a in random_texts(rng, 0.1)
    ]
    result = compare_words(triples)
    assert result.wer_b < 0.6 * result.wer_a
    assert result.matched_pairs.p < 1e-6 and result.mcnemar.p < 1e-6 and result.matched_pairs.mean > 0
    low, high = result.difference_interval
    assert low < result.wer_b - result.wer_a < high < 0.0
    assert result.probability_b_better == 1.0
    json.dumps(result.as_dict(), allow_nan=False)
    empty = compare_words([([], [], ["a"])])
    assert empty.wer_a is None and empty.difference_interval is None and empty.errors_b == 1


REFS = {"dev/1": "turn left now", "dev/2": "stop", "test/3": "go on then"}


def write_run(filename, lists, *, scales=None, utts=None):
    """:param lists: tag -> [(labels, text, att, ctc)]"""
    scales = scales or {"att": 0.6, "ctc": 0.4}
    with NBestWriter(str(filename), NBestHeader("label_sync", scales, vocab={"num_labels": 50})) as writer:
        for tag, hyps in lists.items():
            hyps = [
                Hypothesis(labels, text, scales["att"] * att + scales.get("ctc", 0.0) * ctc, {"att": att, "ctc": ctc})
                for labels, text, att, ctc in hyps
            ]
            hyps.sort(key=lambda hyp: -hyp.score)
            writer.write(Utterance(tag, 1.0, 10, REFS[tag], hyps, None if hyps else "failed"))


A = {
    "dev/1": [([1], "turn lift now", -1.0, -2.0), ([2], "turn left", -3.0, -3.0)],
    "dev/2": [([3], "stop", -1.0, -1.0)],
    "test/3": [([5], "go then", -1.0, -1.0), ([6], "go", -2.0, -2.0)],
}
B = {
    "dev/1": [([4], "turn left now", -1.0, -1.0), ([1], "turn lift now", -1.0, -2.5)],
    "dev/2": [],
    "test/3": [([5], "go then", -1.0, -1.0)],
}


def test_oracle():
    header = NBestHeader("label_sync", {"ctc": 1.0})
    utts = [
        Utterance("a/1", None, None, "x y z", [Hypothesis([1], t, -i, {"ctc": -i}) for i, t in enumerate(texts)], err)
        for texts, err in ((["x", "x y", "x y z q r"], None), ([], "failed"), (["x y z"], None))
    ]
    arrays = make_arrays(header, utts)
    assert arrays.oracle_errors(1).tolist() == [2, 3, 0]
    assert arrays.oracle_errors(2).tolist() == arrays.oracle_errors().tolist() == [1, 3, 0]
    with pytest.raises(ValueError, match="no utterance has a reference"):
        make_arrays(header, [Utterance("a", None, None, None, [], "x")])
    with pytest.raises(ValueError, match="no score of component 'lm'"):
        make_arrays(header, utts, components=["lm"])
    assert make_arrays(header, utts, components=["length"]).features[0, 0, 0] == 1.0


def test_tool(tmp_path):
    for name, lists in (("a", A), ("b", B)):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name / "nbest.jsonl", lists)
    result = run_tool(
        "compare_runs", "a/nbest.jsonl", "b/nbest.jsonl", "--json", "c.json", "--differences", 9, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "c.json").read_text())
    parts = {item["part"]: item for item in record["comparisons"]}
    assert list(parts) == ["dev", "test", "total"]
    assert parts["dev"]["errors"] == [1, 1] and parts["test"]["errors"] == [1, 1] and parts["total"]["num_utts"] == 3
    assert parts["dev"]["mcnemar"] == {"both": 0, "only_a": 1, "only_b": 1, "neither": 0, "p": 1.0}
    oracle = {row["run"]: row["errors"] for row in record["oracle"]}
    assert oracle == {"a": [2, 2], "b": [2, 2], "all together": [1, 1]}
    assert {item["seq_tag"]: item["errors"] for item in record["differences"]} == {"dev/1": [1, 0], "dev/2": [0, 1]}
    assert "HYP: turn lift now" in result.stdout and "all together" in result.stdout


def test_merge(tmp_path):
    write_run(tmp_path / "a.jsonl", A)
    write_run(tmp_path / "b.jsonl", B, scales={"att": 0.1, "ctc": 0.9})
    result = call_tool("compare_runs", "a.jsonl", "b.jsonl", "--merge", "m.jsonl", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    header, utts = load_nbest(str(tmp_path / "m.jsonl"))
    assert header.scales == {"att": 0.6, "ctc": 0.4} and audit(header, utts) == []
    hyps = {utt.seq_tag: [(hyp.labels, hyp.scores["ctc"]) for hyp in utt.hyps] for utt in utts}
    # Known from both: the better score. Failed in one run: the list of the other.
    assert hyps["dev/1"] == [([4], -1.0), ([1], -2.0), ([2], -3.0)]
    assert hyps["dev/2"] == [([3], -1.0)] and len(hyps["test/3"]) == 2
    again = call_tool("compare_runs", "a.jsonl", "b.jsonl", "--merge", "m.jsonl", cwd=tmp_path)
    assert again.returncode == 1 and "exists already" in again.stderr


def test_wrong_input(tmp_path):
    write_run(tmp_path / "a.jsonl", A)
    write_run(tmp_path / "att.jsonl", A, scales={"att": 1.0, "ctc": 0.0})
    write_run(tmp_path / "other.jsonl", {"dev/1": A["dev/1"]})
    lines = (tmp_path / "a.jsonl").read_text().replace('"stop"', '"go"')
    (tmp_path / "refs.jsonl").write_text(lines)
    write_run(tmp_path / "part.jsonl", {"dev/2": A["dev/2"]})
    for args, message in (
        (["a.jsonl", "./a.jsonl"], "given twice"),
        (["a.jsonl", "refs.jsonl"], "mixed references: utterance 'dev/2'"),
        (["a.jsonl", "att.jsonl", "--merge", "m.jsonl"], "att.jsonl has no scores of ctc"),
        (["other.jsonl", "part.jsonl"], "nothing to compare"),
        (["a.jsonl", "--json", "a.jsonl"], "would be overwritten"),
    ):
        result = call_tool("compare_runs", *args, cwd=tmp_path)
        assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith("error: "), result.stderr
        assert message in result.stderr
    assert not (tmp_path / "m.jsonl").exists()
    noted = call_tool("compare_runs", "a.jsonl", "other.jsonl", cwd=tmp_path)
    assert noted.returncode == 0 and "note: a: 2 utterance(s) are not in all runs" in noted.stderr


def test_fast_enough(tmp_path):
    """2,900 utterances of 20 words with 12 hypotheses: arrays with all word errors."""
    import time

    rng = random.Random(0)
    utts = []
    for i in range(2900):
        ref = [f"w{rng.randrange(2000)}" for _ in range(20)]
        texts = [" ".join(w for w in ref if rng.random() > 0.05) for _ in range(12)]
        hyps = [Hypothesis([k], text, -k, {"ctc": -float(k)}) for k, text in enumerate(texts)]
        utts.append(Utterance(f"dev/{i}", 8.0, 100, " ".join(ref), hyps))
    start = time.perf_counter()
    arrays = make_arrays(NBestHeader("x", {"ctc": 1.0}), utts)
    assert time.perf_counter() - start < 6.0
    first = list(itertools.islice(utts, 50))
    expected = [[jiwer.process_words(u.ref, h.text).deletions for h in u.hyps] for u in first]
    assert arrays.errors[:50].tolist() == expected
