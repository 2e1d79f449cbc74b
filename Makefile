PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests of the probe fork with workloads that do not pickle. Once autograd has started threads it refuses to run after a
# fork, so they come first and alone. Of the rest two workers take a file each, with one thread.
FORKING := tests/probing tests/cli tests/train/test_restored.py src/anybatch/probing
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
CHROMIUM ?= chromium
STAMP := $(VENV)/.installed

.PHONY: demo picture test check gpu-check format docs clean help

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: $(STAMP) ## set up, probe the built-in digits, check the advice by training, write the report
	@$(BIN)/anybatch probe digits --verify --budget 30 --verify-budget 95 --runs demo/runs \
	  --json demo/probe.json --report demo/probe.html

picture: demo ## take README's picture from the demo's report, with headless Chromium
	@$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1000,890 \
	  --virtual-time-budget=4000 --screenshot=$(CURDIR)/docs/images/digits.png file://$(CURDIR)/demo/probe.html

test: $(STAMP) ## set up and run all tests
	@$(PYTEST) $(FORKING)
	@$(PYTEST) -n 2 --dist loadfile $(FORKING:%=--ignore=%)

check: $(STAMP) ## lint, types and tests, as a contributor wants them before a commit
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(PYTEST) $(FORKING)
	@$(PYTEST) -n 2 --dist loadfile $(FORKING:%=--ignore=%)

gpu-check: $(STAMP) ## run tests and benchmarks on a GPU, write gpu-check.json to attach
	@$(BIN)/python benchmarks/gpu/check.py --json gpu-check.json

format: $(STAMP) ## format and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(STAMP) ## regenerate the generated parts of README and docs
	@$(BIN)/python docs/generate.py

clean: ## remove the environment and what the commands wrote
	rm -rf $(VENV) demo

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "anybatch needs Python 3.11 or newer; got $$($(PYTHON) --version). Call make PYTHON=python3.11 $(MAKECMDGOALS)."; exit 1; }
	@echo "Setting up $(VENV): torch is large, this takes minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)
