"""Scale tuning: exact line search against enumeration, planted optima, what speaks against a result, the tool."""

from __future__ import annotations

import itertools
import json
import os

import numpy as np
import pytest
from tool_runs import ROOT, call_tool, run_tool

from recog.analysis.arrays import NBestArrays, make_arrays
from recog.analysis.expected import expected_errors
from recog.analysis.line_search import error_curve
from recog.analysis.runs import is_test_name
from recog.analysis.significance import bootstrap_errors
from recog.analysis.tuning import (
    cross_validated_errors,
    error_surface,
    option_overrides,
    scale_interval,
    scale_ranges,
    tune_scales,
    warnings_about,
)
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance, load_nbest


def random_arrays(rng, num_utts, num_hyps, components, *, holes=True):
    shape = (num_utts, num_hyps)
    valid = rng.random(shape) < 0.8 if holes else np.ones(shape, bool)
    valid[:, 0] = True
    return NBestArrays(
        tuple(components),
        rng.normal(size=(*shape, len(components))) * 3 - 20,
        valid,
        rng.integers(0, 6, size=shape),
        rng.integers(1, 10, size=num_utts),
        tuple(f"dev/{i}" for i in range(num_utts)),
    )


def planted_arrays(rng, num_utts, num_hyps, scales, *, margin=0.0):
    """:return: lists on which exactly the hypotheses without errors win with these scales, by at least the margin"""
    arrays = random_arrays(rng, num_utts, num_hyps, scales, holes=False)
    totals = arrays.totals(arrays.vector(scales))
    errors = rng.integers(1, 6, size=totals.shape)
    errors[np.arange(num_utts), totals.argmax(axis=1)] = 0
    top = np.sort(totals, axis=1)
    clear = top[:, -1] - top[:, -2] > margin
    return NBestArrays(
        arrays.components, arrays.features, arrays.valid, errors, arrays.num_ref_words, arrays.seq_tags
    ).select(clear)


def crossings(arrays, scales, direction, start, end):
    """:return: every x where two hypotheses of an utterance are equal, sorted"""
    found = set()
    for f, valid in zip(arrays.features, arrays.valid, strict=True):
        a, b = f[valid] @ scales, f[valid] @ direction
        for i, j in itertools.combinations(range(len(a)), 2):
            if b[i] != b[j] and start < (x := (a[j] - a[i]) / (b[i] - b[j])) < end:
                found.add(x)
    return np.array([start, *sorted(found), end])


@pytest.mark.parametrize("seed", range(6))
def test_curve_is_exact(seed):
    rng = np.random.default_rng(seed)
    arrays = random_arrays(rng, 20, 7, "abc")
    scales, direction = rng.normal(size=3), rng.normal(size=3)
    curve = error_curve(arrays, scales, direction, start=-2.0, end=3.0)
    edges = crossings(arrays, scales, direction, -2.0, 3.0)
    middles = (edges[1:] + edges[:-1]) / 2
    brute_force = [arrays.num_errors(scales + x * direction) for x in middles]
    assert curve.at(middles).tolist() == brute_force
    begin, end, errors = curve.best_interval()
    assert errors == min(brute_force) == arrays.num_errors(scales + (begin + end) / 2 * direction)
    weights = rng.integers(0, 4, size=20)
    weighted = [(weights * arrays.errors_of(scales + x * direction)).sum() for x in middles]
    assert curve.best_interval(weights)[2] == min(weighted)


def test_curve_without_breakpoints():
    arrays = random_arrays(np.random.default_rng(0), 4, 1, "ab")
    curve = error_curve(arrays, np.array([1.0, 0.0]), np.array([0.0, 1.0]), start=0.0, end=1.0)
    assert curve.breakpoints.size == 0 and curve.best_interval() == (0.0, 1.0, arrays.errors[:, 0].sum())


def test_equal_hypotheses_keep_the_order_of_the_file():
    features = np.array([[[-1.0, -2.0], [-1.0, -2.0], [-2.0, -1.0]]])
    arrays = NBestArrays(("a", "b"), features, np.ones((1, 3), bool), np.array([[1, 0, 5]]), np.array([5]), ("x",))
    curve = error_curve(arrays, np.array([1.0, 0.0]), np.array([0.0, 1.0]), start=0.0, end=2.0)
    assert curve.counts().tolist() == [1, 5] and curve.breakpoints.tolist() == [1.0]


@pytest.mark.parametrize("seed", range(5))
def test_two_scales_global_optimum(seed):
    rng = np.random.default_rng(seed)
    arrays = random_arrays(rng, 30, 8, ["att", "ctc"])
    header = NBestHeader("label_sync", {"att": 0.7, "ctc": 0.3})
    ranges = scale_ranges(header, arrays.components)
    tuning = tune_scales(arrays, header.scales, ranges, restarts=0)
    edges = crossings(arrays, np.array([0.3, 0.0]), np.array([0.0, 1.0]), 0.0, 1000.0)
    middles = [x for a, b in itertools.pairwise(edges) for x in [(a + b) / 2] if b - a > 1e-5]
    assert tuning.errors == min(arrays.num_errors(np.array([0.3, x])) for x in middles) <= tuning.default_errors
    assert tuning.errors == arrays.num_errors(arrays.vector(tuning.scales))
    assert sum(tuning.scales.values()) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_planted_optimum_of_four_scales(seed):
    planted = {"att": 0.5, "ctc": 0.5, "lm": 0.4, "ilm": -0.25}
    arrays = planted_arrays(np.random.default_rng(seed), 150, 6, planted, margin=0.15)
    header = NBestHeader("label_sync", {"att": 0.9, "ctc": 0.1, "lm": 0.05, "ilm": -0.01})
    tuning = tune_scales(arrays, header.scales, scale_ranges(header, arrays.components))
    assert tuning.default_errors > 50 and tuning.errors == 0 == arrays.oracle_errors().sum()
    assert tuning.scales["ilm"] < 0.0
    for name, scale in planted.items():
        assert tuning.scales[name] == pytest.approx(scale, abs=0.1)


def test_nothing_better_keeps_the_scales():
    scales = {"att": 0.61, "ctc": 0.39}
    arrays = planted_arrays(np.random.default_rng(1), 30, 5, scales)
    header = NBestHeader("label_sync", scales)
    tuning = tune_scales(arrays, scales, scale_ranges(header, arrays.components))
    assert not tuning.improved and tuning.scales == scales and tuning.errors == 0
    (message,) = warnings_about(arrays, tuning, {})
    assert "No hypothesis of the n-best lists is better than the first" in message


def test_expected_errors_gradient_and_minimum():
    rng = np.random.default_rng(3)
    arrays = planted_arrays(rng, 60, 5, {"att": 0.4, "ctc": 0.6, "lm": 0.3})
    scales = np.array([0.3, 0.2, 0.1])
    _, gradient = expected_errors(arrays, scales)
    for i, step in enumerate(np.eye(3) * 1e-5):
        numeric = (expected_errors(arrays, scales + step)[0] - expected_errors(arrays, scales - step)[0]) / 2e-5
        assert gradient[i] == pytest.approx(numeric, rel=1e-5)
    header = NBestHeader("label_sync", {"att": 0.9, "ctc": 0.1, "lm": 0.01})
    ranges = scale_ranges(header, arrays.components)
    tuning = tune_scales(arrays, header.scales, ranges, criterion="expected", restarts=3)
    best = expected_errors(arrays, arrays.vector(tuning.scales))[0]
    assert tuning.scales["att"] + tuning.scales["ctc"] == pytest.approx(1.0, abs=2e-3)
    for _ in range(200):
        share, lm = rng.random(), rng.random()
        assert best <= expected_errors(arrays, np.array([share, 1 - share, lm]))[0] + 0.05


def test_ranges_and_what_cannot_be_tuned():
    scales = {"att": 0.7, "ctc": 0.3, "ilm": -0.2, "length": 0.1}
    ranges = scale_ranges(NBestHeader("label_sync", scales), list(scales))
    assert (ranges["att"].low, ranges["ilm"].high, ranges["length"].low) == (0.0, 0.0, -10.0)
    assert all(r.tuned for r in ranges.values())
    published = NBestHeader("time_sync", scales, options={"blank_scale": 1.0, "repeat_scale": 1.0})
    assert not scale_ranges(published, list(scales))["ctc"].tuned
    same_number = NBestHeader("time_sync", scales, options={"blank_scale": 0.3, "repeat_scale": 0.3})
    assert not scale_ranges(same_number, list(scales))["ctc"].tuned
    with pytest.raises(ValueError, match="not linear"):
        scale_ranges(published, list(scales), tune=["ctc"])
    linear = NBestHeader("time_sync", scales, options={"blank_scale": "ctc", "repeat_scale": "ctc"})
    assert scale_ranges(linear, list(scales))["ctc"].tuned
    with pytest.raises(ValueError, match="cannot tune the scale of 'lm'"):
        scale_ranges(linear, list(scales), tune=["lm"])
    arrays = random_arrays(np.random.default_rng(0), 40, 6, list(scales))
    tuning = tune_scales(arrays, scales, scale_ranges(published, list(scales)), restarts=3)
    assert tuning.scales["ctc"] == 0.3 and tuning.errors < tuning.default_errors


def test_border_and_second_search_warnings():
    # "lm" is noise that only costs: the best scale is 0. The right hypothesis is always the last of the list.
    rng = np.random.default_rng(5)
    features = np.zeros((50, 8, 2))
    features[:, :, 0] = -np.arange(8)[::-1]
    features[:, :, 1] = -10.0 * np.arange(8) + rng.normal(size=(50, 8))
    errors = np.tile(np.arange(8)[::-1], (50, 1))
    arrays = NBestArrays(
        ("att", "lm"), features, np.ones((50, 8), bool), errors, np.full(50, 10), tuple(map(str, range(50)))
    )
    header = NBestHeader("label_sync", {"att": 1.0, "lm": 1.0})
    ranges = scale_ranges(header, arrays.components)
    tuning = tune_scales(arrays, header.scales, ranges)
    assert tuning.default_errors == 350 and tuning.errors == 0
    intervals = {name: scale_interval(arrays, tuning.scales, name, ranges[name], samples=20) for name in ranges}
    assert intervals["lm"]["at_border"] == "low"
    alone = {"att": 1.0, "lm": 0.0}
    assert scale_interval(arrays, alone, "att", ranges["att"], samples=2)["at_border"] is None
    assert scale_interval(arrays, alone, "lm", ranges["lm"], samples=2)["at_border"] == "low"
    messages = " ".join(warnings_about(arrays, tuning, intervals))
    assert "best scale of lm" in messages and "does not help" in messages
    assert "lists are too short" in messages and "last quarter" in messages
    single = arrays.select(np.arange(50))
    single.valid[:, 1:] = False
    assert "one hypothesis only" in warnings_about(single, tuning, {})[0]


def test_bootstrap_and_cross_validation():
    rng = np.random.default_rng(2)
    arrays = planted_arrays(rng, 80, 6, {"att": 0.5, "ctc": 0.5}, margin=0.2)
    header = NBestHeader("label_sync", {"att": 0.99, "ctc": 0.01})
    before, after = (arrays.errors_of(np.array(s)) for s in ([0.99, 0.01], [0.5, 0.5]))
    rates = bootstrap_errors([before, after], arrays.num_ref_words)
    assert rates.shape == (1000, 2) and (rates[:, 1] == 0).all()
    assert rates[:, 0].mean() == pytest.approx(arrays.wer(before.sum()), rel=0.03)
    errors, scales = cross_validated_errors(arrays, header.scales, scale_ranges(header, arrays.components))
    assert len(scales) == 5 and errors.sum() < 0.2 * before.sum()


def test_surface_is_exact():
    arrays = random_arrays(np.random.default_rng(7), 15, 5, ["att", "ctc", "lm"])
    x, y = np.linspace(0.013, 1.0, 6), np.linspace(-0.5, 0.5, 4)
    surface = error_surface(arrays, {"att": 0.7, "ctc": 0.0, "lm": 0.0}, ("ctc", x), ("lm", y))
    for j, i in itertools.product(range(4), range(6)):
        assert surface[j, i] == pytest.approx(arrays.wer(arrays.num_errors(np.array([0.7, x[i], y[j]]))))


def test_overrides():
    scales = {"att": 0.7, "ctc": 0.0, "ilm": -0.2, "prior": -0.25, "length": -0.5}
    assert option_overrides(scales) == (
        "++att_scale 0.7 ++ctc_scale 0 ++ilm_scale 0.2 ++prior_scale 0.25 ++length_reward +-0.5".split()
    )
    assert option_overrides(scales, changed_from={**scales, "ilm": -0.1}) == ["++ilm_scale", "0.2"]


def test_names_of_test_sets():
    assert all(map(is_test_name, ["test", "test-other", "TEST_clean", "tst2014", "eval2000", "demo_recog_test"]))
    assert not any(map(is_test_name, ["dev", "dev-other", "latest", "contest", "testing", "evaluate"]))


# ---- the tool


def write_planted(filename, parts, *, scales, planted, exponent=0.0, num_utts=40, num_hyps=5):
    """Writes an n-best file on which the scales ``planted`` choose the reference; the search had ``scales``."""
    rng = np.random.default_rng(0)
    header = NBestHeader("label_sync", scales, exponent, options={"beam_size": 4})
    with NBestWriter(str(filename), header) as writer:
        for part, i in itertools.product(parts, range(num_utts)):
            features = {name: rng.normal(size=num_hyps) * 3 - 20 for name in scales}
            lengths = rng.integers(1, 5, size=num_hyps)
            matrix = np.stack(list(features.values()), axis=1) / (lengths[:, None] + 1.0) ** exponent
            totals = matrix @ [scales[name] for name in features]
            right = (matrix @ [planted[name] for name in features]).argmax()
            ref = " ".join(f"w{j}" for j in range(lengths[right]))
            hyps = [
                Hypothesis(
                    [k, *range(1, lengths[k])],
                    ref if k == right else " ".join(f"v{j}" for j in range(lengths[k])),
                    float(totals[k]),
                    {name: float(value[k]) for name, value in features.items()},
                )
                for k in map(int, totals.argsort()[::-1])
            ]
            tag = f"{part}/{i}" if part else f"utt{i}"
            writer.write(Utterance(tag, 1.0, 10, ref, hyps, None))


DEFAULT, PLANTED = {"att": 0.9, "ctc": 0.1}, {"att": 0.5, "ctc": 0.5}


def test_tool(tmp_path):
    (tmp_path / "run").mkdir()
    write_planted(tmp_path / "run" / "nbest.jsonl", ["dev", "test"], scales=DEFAULT, planted=PLANTED)
    result = run_tool("tune_scales", "run/nbest.jsonl", "--json", "tuned.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "not tuned on test" in result.stderr
    record = json.loads((tmp_path / "tuned.json").read_text())
    assert record["parts"] == ["dev"] and record["num_utts"] == 40 and record["improved"]
    assert record["results"]["tuned"]["num_errors"] == 0 < record["results"]["before"]["num_errors"]
    assert record["results"]["oracle"]["num_errors"] == 0
    low, high = record["results"]["before"]["confidence_95"]
    assert low < record["results"]["before"]["wer_percent"] < high
    assert record["probability_better"] == 1.0
    assert record["scales"]["att"] == pytest.approx(0.5, abs=0.05)
    assert record["overrides"][0] == "++att_scale" and " ".join(record["overrides"]) in result.stdout
    assert min(record["curves"][1]["wer_percent"]) == 0.0
    assert "too short" in result.stdout  # all possible errors are gone
    assert np.array(record["surface"]["wer_percent"]).shape == (41, 41)
    # The result holds in the file: the tuned scales choose the references.
    header, utts = load_nbest(str(tmp_path / "run" / "nbest.jsonl"))
    arrays = make_arrays(header, [utt for utt in utts if utt.part == "dev"])
    assert arrays.num_errors(arrays.vector(record["scales"])) == 0


def test_tool_refuses_test_sets(tmp_path):
    write_planted(tmp_path / "nbest.jsonl", ["test-other"], scales=DEFAULT, planted=PLANTED)
    write_planted(tmp_path / "some_test_set.jsonl", [""], scales=DEFAULT, planted=PLANTED)
    for args in (["nbest.jsonl"], ["nbest.jsonl", "--parts", "test-other"], ["some_test_set.jsonl"]):
        result = call_tool("tune_scales", *args, cwd=tmp_path)
        assert result.returncode == 1 and "refused: " in result.stderr and "++att_scale" not in result.stdout
    forced = call_tool("tune_scales", "nbest.jsonl", "--force", "--bootstrap", "50", cwd=tmp_path)
    assert forced.returncode == 0 and "++att_scale" in forced.stdout
    loop = call_tool("tune_scales", "--loop", "x.config", "--parts", "test", cwd=tmp_path)
    assert loop.returncode == 1 and "refused: test" in loop.stderr


def test_tool_length_norm_and_merging(tmp_path):
    write_planted(tmp_path / "a.jsonl", ["dev"], scales=DEFAULT, planted=PLANTED, exponent=1.0)
    write_planted(tmp_path / "b.jsonl", ["dev"], scales=PLANTED, planted=PLANTED, exponent=1.0)
    result = call_tool("tune_scales", "a.jsonl", "--length-norm-exponents", "0,0.5,1", "--json", "a.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["length_norm_exponent"] == 1.0 and record["results"]["tuned"]["num_errors"] == 0
    wrong = call_tool("tune_scales", "a.jsonl", "--length-norm-exponents", "0", "--json", "b.json", cwd=tmp_path)
    assert wrong.returncode == 0
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["results"]["tuned"]["num_errors"] > 0 and "++length_norm_exponent 0" in wrong.stdout
    # Both files hold the same hypotheses.
    merged = call_tool(
        "tune_scales", "a.jsonl", "b.jsonl", "--json", "m.json", "--bootstrap=0", "--folds=0", cwd=tmp_path
    )
    assert merged.returncode == 0, merged.stderr
    assert json.loads((tmp_path / "m.json").read_text())["max_hyps"] == 5


def test_tool_wrong_input(tmp_path):
    write_planted(tmp_path / "n.jsonl", ["a", "b"], scales=DEFAULT, planted=PLANTED, num_utts=2)
    for args, message in (
        (["missing.jsonl"], "missing.jsonl does not exist"),
        (["n.jsonl"], "which parts are for tuning? There are a, b"),
        (["n.jsonl", "--parts", "c"], "no utterances of part 'c'; there are: a, b"),
        (["n.jsonl", "--parts", "a", "--tune", "lm"], "no score of component 'lm'"),
        (["n.jsonl", "--parts", "a", "--json", "n.jsonl"], "would be overwritten"),
    ):
        result = call_tool("tune_scales", *args, cwd=tmp_path)
        assert result.returncode == 1 and result.stderr.count("\n") == 1 and message in result.stderr
    assert call_tool("tune_scales", "n.jsonl", "++beam_size", "3", cwd=tmp_path).returncode == 2
    assert call_tool("tune_scales", "--loop", "x.config", cwd=tmp_path).returncode == 2


SEARCH_CONFIG = """#!rnn.py
# A search over a fixed space of hypotheses which returns the two best: the lists depend on the scales.
import os, sys
import numpy as np
sys.path.insert(0, ROOT)
from configs.base.run import command_line_options
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance
opts = command_line_options()
scales = {"att": float(opts.get("att_scale", 0.95)), "ctc": float(opts.get("ctc_scale", 0.05))}
assert opts["recog_parts"] == "dev" and opts["beam_size"] == "2"
os.makedirs(opts["output_dir"])
rng = np.random.default_rng(0)
with NBestWriter(opts["output_dir"] + "/nbest.jsonl", NBestHeader("label_sync", scales)) as writer:
    for i in range(60):
        features = rng.normal(size=(40, 2)) * [3.0, 3.0] - 20.0
        right = (features @ [0.5, 0.5]).argmax()
        totals = features @ [scales["att"], scales["ctc"]]
        hyps = [
            Hypothesis([int(k)], "right" if k == right else "wrong", float(totals[k]),
                       {"att": float(features[k, 0]), "ctc": float(features[k, 1])})
            for k in totals.argsort()[::-1][:2]
        ]
        writer.write(Utterance(f"dev/{i}", 1.0, 5, "right", hyps))
sys.exit(0)
"""


def test_loop(tmp_path):
    (tmp_path / "toy.config").write_text(SEARCH_CONFIG.replace("ROOT", repr(ROOT)))
    args = ["--loop", "toy.config", "--parts", "dev", "--json", "loop.json", "++beam_size", "2"]
    result = call_tool("tune_scales", *args, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "loop.json").read_text())
    errors = [search["num_errors"] for search in record["searches"]]
    # Lists of two do not reach the optimum at once: it takes several searches.
    assert len(errors) >= 3 and errors[0] > 20 and min(errors) <= 3
    assert errors[record["best_search"] - 1] == min(errors)
    assert record["best_search_scales"]["att"] == pytest.approx(0.5, abs=0.06)
    assert sorted(os.listdir(tmp_path / "output" / "toy_tune")) == [f"search{i + 1}" for i in range(len(errors))]
    failed = call_tool("tune_scales", "--loop", "missing.config", "--parts", "dev", cwd=tmp_path)
    assert failed.returncode == 1 and failed.stderr == "error: missing.config does not exist\n"
    failed = call_tool("tune_scales", *args[:-1], "3", "++output_dir", "x", cwd=tmp_path)
    assert failed.returncode == 1 and "the search failed with exit code" in failed.stderr
