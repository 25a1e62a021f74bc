"""Word error rates: golden cases, jiwer as an independent implementation, the text normaliser."""

from __future__ import annotations

import random
import time

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recog.nbest import Hypothesis, Utterance
from recog.text import TextNormaliser, join_contractions
from recog.wer import (
    RunScore,
    WerResult,
    align_words,
    format_alignment,
    format_table,
    run_name,
    score_table,
    score_utterances,
    word_errors,
)

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "é"]), max_size=12)


@pytest.mark.parametrize(
    ("ref", "hyp", "sub", "ins", "del_"),
    [
        ("", "", 0, 0, 0),
        ("a b c", "a b c", 0, 0, 0),
        ("", "a b", 0, 2, 0),
        ("a b", "", 0, 0, 2),
        ("a b c", "a x c", 1, 0, 0),
        ("a b c", "a c", 0, 0, 1),
        ("a c", "a b c", 0, 1, 0),
        ("a", "x y z", 1, 2, 0),
        ("turn left then stop", "turn lift then go stop", 1, 1, 0),
        ("a b c d", "b c d e", 0, 1, 1),
    ],
)
def test_golden(ref, hyp, sub, ins, del_):
    result = word_errors(ref.split(), hyp.split())
    assert (result.num_sub, result.num_ins, result.num_del) == (sub, ins, del_)
    assert (result.num_utts, result.num_ref_words) == (1, len(ref.split()))
    assert result.num_utts_with_error == (ref != hyp)


@settings(max_examples=300, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=5))
def test_against_jiwer(pairs):
    ours = sum((word_errors(ref, hyp) for ref, hyp in pairs), WerResult())
    theirs = jiwer.process_words([" ".join(r) for r, _ in pairs], [" ".join(h) for _, h in pairs])
    # Equally good alignments can split the errors differently, but insertions - deletions is the difference in length.
    assert ours.num_errors == theirs.substitutions + theirs.insertions + theirs.deletions
    assert ours.num_ins - ours.num_del == theirs.insertions - theirs.deletions
    assert ours.wer == pytest.approx(100 * theirs.wer)
    assert ours.num_utts == len(pairs)
    assert ours.ser == pytest.approx(100 * sum(r != h for r, h in pairs) / len(pairs))


@settings(max_examples=300, deadline=None)
@given(ref=WORDS, hyp=WORDS, sclite_costs=st.booleans())
def test_alignment_fits_the_counts(ref, hyp, sclite_costs):
    result = word_errors(ref, hyp, sclite_costs=sclite_costs)
    pairs = align_words(ref, hyp, sclite_costs=sclite_costs)
    assert [r for r, _ in pairs if r is not None] == ref
    assert [h for _, h in pairs if h is not None] == hyp
    assert (None, None) not in pairs
    assert result.num_ins == sum(r is None for r, _ in pairs)
    assert result.num_del == sum(h is None for _, h in pairs)
    assert result.num_errors == sum(r != h for r, h in pairs)


def test_sclite_costs():
    # 5 substitutions cost 5 or, with the costs of sclite, 20; 3 deletions and 3 insertions cost 6 or 18.
    ref, hyp = "x y z a b".split(), "a b u v w".split()
    assert word_errors(ref, hyp).num_sub == 5
    result = word_errors(ref, hyp, sclite_costs=True)
    assert (result.num_sub, result.num_ins, result.num_del) == (0, 3, 3)


def dynamic_programming(ref, hyp, *, sub, indel):
    """:return: the smallest cost of an alignment, by the textbook recursion"""
    row = [indel * j for j in range(len(hyp) + 1)]
    for i, word in enumerate(ref, 1):
        new = [indel * i]
        for j, other in enumerate(hyp, 1):
            new.append(min(row[j - 1] + (sub if word != other else 0), row[j] + indel, new[j - 1] + indel))
        row = new
    return row[-1]


@settings(max_examples=500, deadline=None)
@given(ref=WORDS, hyp=WORDS)
def test_against_dynamic_programming(ref, hyp):
    """Also with empty texts, which jiwer refuses, and with the costs of sclite (substitution 4, others 3)."""
    result = word_errors(ref, hyp)
    assert result.num_errors == dynamic_programming(ref, hyp, sub=1, indel=1)
    result = word_errors(ref, hyp, sclite_costs=True)
    cost = 4 * result.num_sub + 3 * (result.num_ins + result.num_del)
    assert cost == dynamic_programming(ref, hyp, sub=4, indel=3)
    assert result.num_ins - result.num_del == len(hyp) - len(ref)


def test_adding_and_rates():
    a = WerResult(num_utts=2, num_ref_words=10, num_sub=1, num_ins=2, num_del=3, num_utts_with_error=1, num_failed=1)
    b = WerResult(num_utts=3, num_ref_words=20, num_sub=3, num_utts_with_error=2, num_no_ref=4)
    total = sum([a, b], WerResult())
    assert total == WerResult(5, 30, 4, 2, 3, 3, 1, 4) == a + b == b + a
    assert (total.num_errors, total.wer, total.ser) == (9, 30.0, 60.0)
    assert total.as_dict()["wer_percent"] == 30.0
    with pytest.raises(TypeError):
        a + 1


def test_rates_that_are_not_defined():
    assert WerResult().wer is None and WerResult().ser is None
    only_insertions = word_errors([], ["a"])
    assert only_insertions.wer is None and only_insertions.ser == 100.0
    assert (word_errors(["a"], ["b", "c", "d"])).wer == pytest.approx(300.0)


def make_utt(tag, ref, hyp, error=None):
    hyps = [] if hyp is None else [Hypothesis([], hyp, 0.0, {}), Hypothesis([], "never looked at", -1.0, {})]
    return Utterance(tag, 1.0, 10, ref, hyps, error)


def test_score_utterances():
    score = score_utterances(
        [
            make_utt("test/2", "IT 'S a  <unk> test", "it's a test"),
            make_utt("test/1", "two words", None, error="out of memory"),
            make_utt("dev/1", "a b", "a x"),
            make_utt("dev/2", None, "a"),
            make_utt("dev/3", "", ""),
        ]
    )
    assert list(score.parts) == ["dev", "test"]
    dev = WerResult(num_utts=2, num_ref_words=2, num_sub=1, num_utts_with_error=1, num_no_ref=1)
    test = WerResult(num_utts=2, num_ref_words=5, num_del=2, num_utts_with_error=1, num_failed=1)
    assert score.parts == {"dev": dev, "test": test}
    assert score.total == dev + test
    assert list(score.rows()) == ["dev", "test", "total"]
    assert list(RunScore({"dev": dev}).rows()) == ["dev"]
    assert score.as_dict()["parts"]["dev"]["wer_percent"] == 50.0
    assert score.as_dict()["total"]["num_utts"] == 4


def test_fast_enough():
    rng = random.Random(1)
    utts = []
    for i in range(2900):
        ref = [f"w{rng.randrange(1000)}" for _ in range(20)]
        hyp = [word for word in ref if rng.random() > 0.05] + ["x"]
        utts.append(make_utt(f"dev-other/{i}", " ".join(ref), " ".join(hyp)))
    start = time.perf_counter()
    score = score_utterances(utts)
    assert time.perf_counter() - start < 2.0
    assert score.total.num_utts_with_error == 2900


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  HELLO \t World\n", "hello world"),
        ("", ""),
        ("<unk>", ""),
        ("a <UNK> b [unk] c ⁇ d", "a b c d"),
        ("it 's don 't I 'm he 'll they 're we 've she 'd", "it's don't i'm he'll they're we've she'd"),
        ("it's don't", "it's don't"),
        ("it’s", "it's"),
        ("'em 'cause go 'em", "'em 'cause go 'em"),
        ("'s a", "'s a"),
        ("the workers ' party ' s", "the workers' party ' s"),
        ("it <unk> 's", "it's"),
        ("e\u0301", "\u00e9"),
        ("a\u00a0b\u2028c", "a b c"),
    ],
)
def test_normaliser(text, expected):
    assert TextNormaliser()(text) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("aS '<unk>\u2019\u00e9e\u0301 tI"), max_size=20))
def test_normaliser_is_idempotent(text):
    normalise = TextNormaliser()
    assert normalise(normalise(text)) == normalise(text)


def test_normaliser_options():
    assert TextNormaliser(lower_case=False)("A <UNK> It 'S") == "A It'S"
    assert TextNormaliser(drop_unknown=False)("A <UNK>") == "a <unk>"
    assert join_contractions("It 's  A") == "It's  A"


def test_format_alignment():
    pairs = align_words("turn left then stop".split(), "turn lifted go stop".split())
    assert format_alignment([("a", "a"), ("bb", None), (None, "ccc"), ("dd", "e")]) == (
        "REF: a bb *** dd\nHYP: a ** ccc e\n       D  I   S"
    )
    assert format_alignment(pairs).splitlines()[2] == "          S      S"
    assert format_alignment([("a", "a")]) == "REF: a\nHYP: a"
    assert format_alignment([]) == "REF:\nHYP:"


def test_tables():
    score = score_utterances([make_utt("test/1", "a b c", "a b"), make_utt("test/2", "", "a")])
    text = score_table({"demo_ctc": ("ctc_greedy", score), "x": ("time_sync", RunScore({"": WerResult(num_no_ref=2)}))})
    lines = text.splitlines()
    assert lines[0].split() == "run search part utts words WER % sub ins del SER %".split()
    assert lines[2].split() == "demo_ctc ctc_greedy test 2 3 66.67 0 1 1 100.00".split()
    assert lines[3].split() == "x time_sync - 0 0 - 0 0 0 -".split()
    assert lines[4] == "x: 2 utterance(s) without a reference are left out."
    assert len({line.rindex("%") + 1 for line in lines[:1]} | {len(line) for line in lines[1:4]}) == 1
    markdown = format_table(["a", "b"], [["x|y", "1"]], num_text_columns=1, markdown=True)
    assert markdown.splitlines() == ["| a    |   b |", "| ---- | --: |", "| x\\|y |   1 |"]


def test_run_name(tmp_path, monkeypatch):
    assert run_name("output/demo_recog_ctc/nbest.jsonl") == "demo_recog_ctc"
    assert run_name("output/demo/nbest.jsonl.gz") == "demo"
    assert run_name("output/best_run.jsonl") == "best_run"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_name("nbest.jsonl") == "here"
