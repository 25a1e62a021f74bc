"""Results as data: what is there, that wrong entries are found, scales of a row as options of a search."""

from __future__ import annotations

import json
import os

import pytest

from configs.base import published
from configs.base.options import OptionError, resolve_options
from configs.base.published import Result, ResultError, find_row, load_models, load_results, write_results
from configs.base.recipes import RecipeOptions, check_models, chosen_row, row_options
from recog.options import CtcOptions, ExternalModelOptions, GreedyOptions, LabelSyncOptions, TimeSyncOptions

SEARCHES = {"ctc_greedy": GreedyOptions, "label_sync": LabelSyncOptions}


@pytest.fixture(scope="module")
def results():
    return load_results()


def test_published_rows(results):
    ted2 = [
        row for row in results if row.corpus == "tedlium2" and row.kind == "recognition" and "scales.py:" in row.source
    ]
    assert len(ted2) == 250 and len({row.recipe for row in ted2}) == 16
    invalid = [row for row in ted2 if row.invalid]
    assert len(invalid) == 18 and all(row.recipe.endswith("optsr") and "_lay" in row.model for row in invalid)
    assert all(row.wer for row in ted2 if row.recipe != "ctc_prior_tsbs")
    best = min((row for row in ted2 if row.wer), key=lambda row: (row.wer["dev"], row.wer["test"]))
    assert (best.wer["dev"], best.wer["test"]) == (6.2, 5.9) and best.ctc_model == "model_ctc_only"
    row = find_row(results, "librispeech", "att_ctc_lm_ilm_opls", "model_baseline")
    assert row.scales == {"att": 0.8, "ctc": 0.2, "prior": 0.05, "lm": 0.65, "ilm": 0.4}
    assert list(row.wer.values()) == [1.71, 3.58, 1.94, 4.11] and row.beams == (32,)
    assert {row.kind for row in results} == {"recognition", "training", "system"}
    assert all(row.wer or row.note or row.candidates for row in results if row.kind != "recognition")


def test_models():
    models = {model.model: model for model in load_models()}
    assert models["model_ctc0.3_att0.7_lay8"].ctc_layer == 8
    assert models["model_ctc0.3_att0.7_lay8"].ctc_share == pytest.approx(0.3)
    assert models["model_att_only_currL"].ctc_layer is None and models["model_ctc_only"].ctc_share == 1.0


ROW = {
    "corpus": "tedlium2",
    "kind": "recognition",
    "recipe": "att",
    "model": "m",
    "search": "label_sync",
    "scales": {"att": 1.0},
    "wer": {"dev": 7.0},
    "source": "somewhere",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": "ted"}, "corpus 'ted': expected librispeech, tedlium2, demo"),
        ({"kind": "test"}, "kind = 'test': expected recognition or training or system"),
        ({"search": "fast"}, "search = 'fast': expected label_sync or"),
        ({"wer": {"dev-other": 5.0}}, "tedlium2 has no part 'dev-other'"),
        ({"wer": {"dev": -1.0}}, "wer of dev = -1.0"),
        ({"wer": {"dev": "7.0"}}, "wer = {'dev': '7.0'}: expected dict[str, float]"),
        ({"scales": {"at": 1.0}}, "scale 'at': expected att, ctc"),
        ({"scales": {"att": 1.0, "lm": 0.3}}, "lm does not say which"),
        ({"scales": {}}, "a recognition needs scales"),
        ({"beams": [0]}, "expected numbers >= 1"),
        ({"source": ""}, "source is empty"),
        ({"invalid": ""}, "invalid is empty"),
        ({"word": 1}, "unknown field 'word'; did you mean"),
        ({"date": "2026-01-01"}, "needs command, date and machine"),
    ],
)
def test_wrong_rows(tmp_path, change, message):
    filename = tmp_path / "x.jsonl"
    filename.write_text('{"about": "test"}\n' + json.dumps({**ROW, **change}) + "\n")
    with pytest.raises(ResultError) as info:
        load_results(str(tmp_path))
    assert f"{filename}:2: " in str(info.value) and message in str(info.value)


def test_wrong_files(tmp_path):
    line = json.dumps(ROW) + "\n"
    for content, message in {
        line: 'x.jsonl:1: expected {"about"',
        '{"about": "test"}\n{\n': "x.jsonl:2: not JSON",
        '{"about": "test"}\n[]\n': "x.jsonl:2: expected an object",
        '{"about": "test"}\n' + line + line: "x.jsonl:3: the same row is already in",
    }.items():
        (tmp_path / "x.jsonl").write_text(content)
        with pytest.raises(ResultError) as info:
            load_results(str(tmp_path))
        assert message in str(info.value)


def test_write_and_read(tmp_path, results):
    write_results(str(tmp_path / "all.jsonl"), "all", results)
    assert load_results(str(tmp_path)) == results
    with pytest.raises(ValueError):
        write_results(str(tmp_path / "all.jsonl"), "all", [Result(**{**ROW, "note": "x"}), _nan_row()])
    assert load_results(str(tmp_path)) == results and os.listdir(tmp_path) == ["all.jsonl"]


def _nan_row():
    row = Result(**ROW)
    row.wer["dev"] = float("nan")
    return row


def options_of(row, search, command_line=None, namespace=None):
    """:return: option groups of a run with this row, and no model or corpus"""
    groups, _ = resolve_options(
        namespace or {},
        {"recipe": row.recipe, "model": row.model, "prior_file": "p", **(command_line or {})},
        [RecipeOptions(), CtcOptions(), ExternalModelOptions(), search],
        presets=row_options(row, type(search)),
    )
    return groups


def test_every_valid_row_is_options_of_its_search(results):
    """All published scales arrive where the search reads them."""
    rows = [row for row in results if row.kind == "recognition" and not row.measured]
    usable = [row for row in rows if not (row.invalid or row.candidates or row.search == "two_pass")]
    assert len(usable) >= 270
    for row in usable:
        search = SEARCHES.get(row.search, TimeSyncOptions)()
        groups = options_of(row, search)
        assert groups[CtcOptions].prior_scale == row.scales.get("prior", 0.0)
        assert groups[CtcOptions].prior_type == "frame"
        if row.search != "ctc_greedy":
            opts = groups[type(search)]
            for name in ("att", "ctc", "lm", "ilm"):
                assert getattr(opts, f"{name}_scale") == row.scales.get(name, 0.0), row
            assert opts.beam_size == (max(row.beams) if row.beams else 12)


def test_meaning_of_searches(results):
    def opts(recipe, search, model="model_baseline"):
        return options_of(find_row(results, "tedlium2", recipe, model), search)[type(search)]

    opls = opts("att_ctc_opls", LabelSyncOptions(length_reward=1.0, coverage_scale=0.1))
    assert (opls.length_norm_exponent, opls.ended_hyps, opls.published_scoring) == (1.0, "in_beam", True)
    assert (opls.length_reward, opls.coverage_scale) == (0.0, 0.0)
    optsr = opts("att_ctc_optsr", TimeSyncOptions(blank_scale="ctc", repeat_scale="ctc", recombination="sum"))
    assert (optsr.blank_scale, optsr.repeat_scale, optsr.recombination) == (1.0, 1.0, "max")
    assert optsr.eos_at_end and optsr.length_norm_exponent == 0.0
    tsbs = opts("att_ctc_tsbs", TimeSyncOptions())
    assert (tsbs.blank_scale, tsbs.repeat_scale, tsbs.recombination, tsbs.eos_at_end) == ("ctc", "ctc", "sum", False)
    with pytest.raises(OptionError, match=r"use it with configs/ted2_recog_labelsync\.config"):
        opts("att_ctc_opls", TimeSyncOptions())


def test_what_wins(results):
    row = find_row(results, "tedlium2", "att_ctc_opls", "model_ctc0.3_att0.7")
    search = LabelSyncOptions(beam_size=5, att_scale=0.5, ctc_scale=0.5)
    groups = options_of(row, search, {"ctc_scale": "0.9", "prior_scale": "0"}, {"beam_size": 7})
    opts = groups[LabelSyncOptions]
    assert (opts.att_scale, opts.ctc_scale, opts.beam_size, groups[CtcOptions].prior_scale) == (0.67, 0.9, 7, 0.0)
    assert (groups[RecipeOptions].recipe, groups[RecipeOptions].model) == (row.recipe, row.model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "att_ctc_opl", "model": "model_baseline"}, "no recipe 'att_ctc_opl'; did you mean att_ctc_opls"),
        ({"recipe": "att_ctc_opls", "model": "model_ctc0.3_att0.8"}, "did you mean model_ctc0.3_att0.7"),
        ({"recipe": "att_ctc_opls"}, "give ++model, one of model_baseline, model_ctc0.9_att0.1"),
        ({"model": "model_baseline"}, "give ++recipe, too"),
        ({"recipe": "att_ctc_optsr", "model": "model_baseline_lay6"}, "must not be used: the time-synchronous runs"),
        ({"recipe": "att_ctc_lm_ilm_optsr", "model": "model_baseline"}, "has ilm 0.45, 0.5; give the scales instead"),
        ({"recipe": "att_ctc_opls", "model": "model_baseline"}, "has the prior scale 0.75: give the CTC prior"),
    ],
)
def test_refused_rows(options, message):
    with pytest.raises(OptionError) as info:
        chosen_row({}, options, corpus="tedlium2")
    assert message in str(info.value)


def test_no_row_and_other_corpora():
    assert chosen_row({}, {}, corpus="tedlium2") is None
    options = {"recipe": "att", "model": "model_baseline"}
    assert chosen_row({"recipe": "att"}, {"model": "model_baseline"}, corpus="librispeech").wer["dev-other"] == 5.34
    with pytest.raises(OptionError, match="no recognition results of the corpus xy"):
        chosen_row({}, options, corpus="xy")
    with pytest.raises(OptionError, match="of the search two_pass, for which there is no recognition config"):
        chosen_row({}, {"recipe": "two_pass_lm_ilm", "model": "model_baseline"}, corpus="librispeech")


def test_models_of_a_row(results):
    def message(recipe, external, model="model_baseline", corpus="librispeech", **scales):
        row = find_row(results, corpus, recipe, model)
        search = options_of(row, LabelSyncOptions(), {name: str(value) for name, value in scales.items()})
        try:
            check_models(row, search[LabelSyncOptions], external)
        except OptionError as exc:
            return str(exc)
        return None

    nothing, lm = ExternalModelOptions(), ExternalModelOptions(lm_checkpoint="lm.pt")
    recipe = "att_ctc_lm_ilm_opls"
    assert "has the LM scale 0.65: give a language model with ++lm_checkpoint" in message(recipe, nothing)
    assert "scale 0.4 of an internal LM" in message(recipe, lm)
    assert message(recipe, lm, ilm_scale=0) is None
    assert message(recipe, ExternalModelOptions(lm_checkpoint="lm.pt", ilm_type="zero")) is None
    second = ExternalModelOptions(ctc_checkpoint="ctc.pt")
    assert "second model, model_ctc_only" in message("att_ctc_only_opls", nothing, corpus="tedlium2")
    assert message("att_ctc_only_opls", second, corpus="tedlium2") is None
    assert "was tuned with the CTC head of the same model" in message("att_ctc_opls", second)


def test_files_are_where_packages_expect_them():
    assert os.path.dirname(published.MEASURED_FILE) == published.RESULTS_DIR
    assert os.path.relpath(published.RESULTS_DIR, os.path.dirname(published.__file__)) == "results"
