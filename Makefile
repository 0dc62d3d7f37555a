# Python 3.11 or newer and make are all this needs; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help serve test check bench demo data models lock clean

help:  ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

serve: $(VENV)/.serve  ## Serve the bundled models on 8080 (public) and 8081 (ops)
	@$(BIN)/gateway serve

test: $(VENV)/.dev  ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev  ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(VENV)/.serve  ## Replay real traffic and show what the gateway makes of it
	@$(BIN)/python -m bench.demo

bench: $(VENV)/.dev  ## Measure the gateway beside its peers and itself (35 minutes; needs wrk)
	$(BIN)/python -m bench

data: $(VENV)/.dev  ## Fetch the full data sets behind the committed extracts
	$(BIN)/python models/fetch_data.py

models: $(VENV)/.dev  ## Train the bundled models again; the files come out bit for bit the same
	for script in models/*/train.py; do $(BIN)/python $$script || exit 1; done

lock: ## Pin every dependency again, with hashes and without addresses (needs uv)
	bash requirements/lock

clean:  ## Remove the environment and the gateway's local data
	rm -rf $(VENV) .gateway .data .bench

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: requirements/serve.txt requirements/build.txt pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/build.txt -r requirements/serve.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.serve
	@echo "installing what tests and training need into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
