# make demo   from nothing to a WER table and a report (README, "In ten minutes")
# make test   lint and the whole test suite
# make test-tf   TensorFlow networks, built and converted (needs Python 3.10 or 3.11; not part of make test)
# All set up .venv first, can be interrupted and started again, and do nothing twice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DATA := data/demo
TF_VENV := .venv-tf
PYTHON_FOR_TF ?= python3.11

.PHONY: help demo demo-corpus demo-train demo-lm demo-recog demo-score demo-analysis test test-tf lint venv clean-demo
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

venv: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml constraints.txt tools/check_machine.py
	@$(PYTHON) tools/check_machine.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "error: cannot make $(VENV); on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (a few minutes, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]' \
	  || { echo "error: pip could not install. No network or no package index? Set PIP_INDEX_URL to one that you reach (or PIP_FIND_LINKS to a folder of wheels). No space? Free about 4 GB. Then start the same command again: it continues." >&2; exit 1; }
	@touch $@

# The demo is nothing but the commands below, which can as well be typed one by one (with $(BIN) in PATH).

demo: demo-analysis
	$(BIN)/python tools/report.py output/demo_train output/demo_lm_train output/demo_perplexity output/demo_recog_*/nbest.jsonl output/demo_recog_timesync_beams/references output/demo_tuned.json output/demo_beams.json --pictures 3 --output output/report.html

demo-corpus: venv
	$(BIN)/python tools/make_demo_corpus.py $(DEMO_DATA)/source
	$(BIN)/python tools/prepare_librispeech.py $(DEMO_DATA)/source $(DEMO_DATA) --corpus demo --vocab spm_unigram_80 --lm-text $(DEMO_DATA)/source/lm.txt

demo-train: demo-corpus
	$(BIN)/rnn.py configs/demo_train.config

demo-lm: demo-train
	$(BIN)/rnn.py configs/demo_lm_train.config
	$(BIN)/rnn.py configs/demo_ilm_train.config
	$(BIN)/rnn.py configs/demo_ilm_context.config
	$(BIN)/rnn.py configs/demo_perplexity.config ++models demo_lm_train,demo_ilm_train,output/demo_ilm_context/zero.pt,output/demo_ilm_context/average.pt

demo-recog: demo-lm
	$(BIN)/rnn.py configs/demo_recog_ctc.config
	$(BIN)/rnn.py configs/demo_recog_labelsync.config
	$(BIN)/rnn.py configs/demo_recog_timesync.config
	$(BIN)/rnn.py configs/demo_recog_labelsync_lm.config
	$(BIN)/rnn.py configs/demo_recog_timesync_lm.config
	$(BIN)/rnn.py configs/demo_recog_labelsync_lm_ilm.config
	$(BIN)/rnn.py configs/demo_recog_timesync_lm_ilm.config

demo-score: demo-recog
	$(BIN)/python tools/score.py output/demo_recog_*/nbest.jsonl

demo-analysis: demo-score
	$(BIN)/python tools/tune_scales.py output/demo_recog_labelsync/nbest.jsonl --parts dev --json output/demo_tuned.json
	$(BIN)/python tools/search_errors.py --beams 1,4,16 configs/demo_recog_timesync.config configs/demo_forced_timesync.config --parts dev --json output/demo_beams.json

clean-demo:
	rm -rf $(DEMO_DATA) output/demo_* output/report.html

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

# TensorFlow needs an old numpy, so it has an environment of its own. The first run compiles RETURNN's LSTM (needs g++).
test-tf: venv $(TF_VENV)/.complete
	OMP_NUM_THREADS=1 TF_PYTHON=$(abspath $(TF_VENV))/bin/python $(BIN)/python -m pytest tests/test_convert_tf.py

$(TF_VENV)/.complete: tests/tf/requirements.txt
	@test -x $(TF_VENV)/bin/python || $(PYTHON_FOR_TF) -m venv $(TF_VENV) || { echo "error: cannot make $(TF_VENV): TensorFlow 2.15 needs Python 3.10 or 3.11; say which with make test-tf PYTHON_FOR_TF=..." >&2; exit 1; }
	@echo "Installing TensorFlow into $(TF_VENV) (a few minutes, once) ..."
	@$(TF_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/tf/requirements.txt
	@touch $@
