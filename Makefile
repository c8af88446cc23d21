# Fifteen commands; `make help` lists them. The environment lives in .venv and is renewed when settings.ini or setup.py change.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo test lessons lab format docs bench scoreboard scoreboard-train

PYTHON ?= 3.11
BIN := .venv/bin
READY := .venv/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Python keeps what it has compiled; without that, every start takes eight seconds longer (4.7 s become 13).
unexport PYTHONDONTWRITEBYTECODE

# Tests: no window opens, no GPU is used, and two notebooks, then two files of tests at a time share the machine. Tests on the data sets run when
# CELLSEG_DATA names their folder; those marked slow or gpu do not. Kedro and DVC set up logging anew, and with it close what TensorFlow
# writes to, so their tests have processes of their own; those that kill and limit have one, too.
ALONE := workflow dvc hardships
test: export MPLBACKEND := Agg
test: export OMP_NUM_THREADS := 1
test: export TF_CPP_MIN_LOG_LEVEL := 3
test: export PYTHONFAULTHANDLER := 1
test: export CUDA_VISIBLE_DEVICES :=
test: export CELLSEG_TESTS_STARTED := $(shell date +%s)

help: ## list these commands
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' Makefile
	@$(foreach app,$(APPS),printf 'make %-17s %s\n' 'app-$(app)' 'the app “$(call title,$(app))” on http://localhost:$(call port,$(app))';)

demo: $(READY) ## a real image: nuclei outlined, counted, measured and scored
	@$(BIN)/cellseg demo

test: $(READY) ## every notebook, then every test
	@$(BIN)/nbdev_test --n_workers 2 --timing --flags "$(if $(CELLSEG_DATA),data)"
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests $(foreach alone,$(ALONE),--ignore tests/test_$(alone).py)
	@for alone in $(ALONE); do $(BIN)/python -m pytest tests/test_$$alone.py || exit 1; done

# As readers run them: all cells, the full schedule. Beside that, what the texts claim is checked.
lessons: $(READY) ## every lesson as readers run it, without data sets and with those on this computer
	@$(BIN)/python tests/experiments/lessons.py

lab: $(READY) ## open the lessons in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=nbs nbs/lessons \
	  --ServerApp.tornado_settings="{'websocket_max_message_size': 268435456}"

# An app is a notebook nbs/apps/NAME.ipynb, served by `make app-NAME` under the title that it begins with. A new one needs
# nothing here; without a port of its own it gets the one in nbs/apps/voila.json, where the upload limit stands, too.
APPS := $(patsubst nbs/apps/%.ipynb,%,$(wildcard nbs/apps/[a-z]*.ipynb))
PORTS := segment=8867 cells3d=8000 stars=8868 points=8869 slide=8870 grid=8871
port = $(or $(patsubst $(1)=%,%,$(filter $(1)=%,$(PORTS))),8867)
title = $(shell sed -n 's/^ *"\# \(.*\)\\n",$$/\1/p' nbs/apps/$(1).ipynb | head -n 1)

app-%: nbs/apps/%.ipynb $(READY)
	@$(BIN)/voila $< --Voila.config_file_paths=nbs/apps --Voila.port=$(call port,$*) --VoilaConfiguration.resources="{'metadata': {'name': '$(call title,$*)'}}"

format: $(READY) ## lay out and check the code; clean the notebooks; write the modules and README.md from them
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python -m cellseg_nb._docs_render

# Pictures of real cells are not stored in the notebooks; the site shows them as this computer draws them, those of data sets
# where CELLSEG_DATA names their folder. Whatever fails, ends it with an error; the notebooks are cleaned all the same.
docs: format ## the documentation site in _docs (needs Quarto)
	@set -e; \
	if quarto --version > /dev/null 2>&1; then \
	  trap '$(BIN)/nbdev_clean; $(BIN)/python -m cellseg_nb._docs_render' EXIT; \
	  live=$$($(BIN)/python -m cellseg_nb._docs_render --live); \
	  $(BIN)/jupyter nbconvert --to notebook --execute --inplace $$live; \
	  $(BIN)/nbdev_docs --n_workers 2; \
	  $(BIN)/python -m cellseg_nb._docs_render --finish; \
	else \
	  $(BIN)/python -m cellseg_nb._docs_render --pages; \
	  echo "The pages are prepared in _proc. Quarto, which renders them, is missing: https://quarto.org/docs/get-started"; \
	fi

bench: $(READY) ## speed and memory beside other packages
	@set -e; for script in tests/bench/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

# On dsb2018 where CELLSEG_DATA names its folder. The training takes about three hours on one core; killed, it goes on where
# it was. Its model, when it is at most 10 MB, replaces the one in the package.
scoreboard: $(READY) ## models side by side: accuracy of outlines, counts and stacks, speed, memory; tables and plot for the site
	@$(BIN)/python tests/bench/models.py --write

scoreboard-train: $(READY) ## the StarDist model of the scoreboard, on the pictures that the model nuclei saw
	@$(BIN)/cellseg train stars --out runs/stars $$(test -f runs/stars/config.yml && echo --resume)
	@size=$$(wc -c < runs/stars/model/weights.safetensors); \
	if [ $$size -gt 10000000 ]; then echo "runs/stars/model is not kept in the package: $$size bytes, more than 10 MB"; exit 1; fi; \
	cp runs/stars/model/* runs/stars/log.csv cellseg_nb/bundles/stars/ && echo "the package has this model now: cellseg_nb/bundles/stars"

# uv makes the environment. Where uv is missing, pip brings it; where pip may not install into the system's Python,
# uv gets a folder of its own (.uv).
$(READY): settings.ini setup.py
	@set -e; \
	if uv --version > /dev/null 2>&1; then uv=uv; \
	elif python3 -m uv --version > /dev/null 2>&1; then uv="python3 -m uv"; \
	elif python3 -m pip install --quiet uv 2> /dev/null; then uv="python3 -m uv"; \
	else python3 -m venv .uv; .uv/bin/python -m pip install --quiet uv; uv=.uv/bin/uv; fi; \
	echo "Installing into .venv; the first time this downloads a few GB ..."; \
	test -x $(BIN)/python || $$uv venv --quiet --seed --python $(PYTHON) .venv; \
	$$uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	touch $@
