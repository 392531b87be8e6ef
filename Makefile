# Windows: README.md has the same as plain pip and conda commands.

PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check install

.PHONY: help run lab quick lint test rehearse test-browser test-oldest test-newest clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/installed  ## execute the notebooks into build/notebooks, as .ipynb and .html
	$(BIN)/agnews notebooks --target build/notebooks

lab: .venv/installed  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

quick: lint  ## lint, and the unit tests that are not slow: four minutes
	$(BIN)/python -m pytest -n 2 -m "not slow" tests

lint: .venv/test  ## format and rules, as pyproject.toml has them; `ruff format` and `ruff check --fix` mend most
	$(BIN)/ruff format --check
	$(BIN)/ruff check

test: lint  ## lint, all unit tests with their coverage, and every notebook against its stored outputs
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term --cov-fail-under=92

rehearse: .venv/test  ## all notebooks with as many rows as AG News, and with all kinds of data (25 minutes)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m rehearsal -rP tests/rehearsal

test-browser: .venv/browser  ## every notebook in JupyterLab, in the Chromium or Chrome that is there
	$(BIN)/python -m pytest tests/browser

# Constrained: the stored outputs are those of these versions, of torch above all.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, and $(PYTHON) is {sys.version.split()[0]}: make lab PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c constraints.txt -e ".[offline]"
	touch $@

.venv/test: .venv/installed
	$(BIN)/python $(PIP) -c constraints.txt -e ".[offline,test]"
	touch $@

.venv/browser: .venv/test
	$(BIN)/python $(PIP) -c constraints.txt -e ".[offline,test,browser]"
	touch $@

# Lax: the stored outputs are those of constraints.txt; with other versions a notebook must only run to its end.
test-oldest: .venv-oldest/installed  ## the tests with the oldest versions that pyproject.toml allows, in .venv-oldest
	.venv-oldest/bin/python -m pytest -n 2 --nbval-lax

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) -c constraints-oldest.txt -e ".[offline,test]"
	touch $@

# Installed each time: what is newest changes without any file of ours.
test-newest:  ## the tests with the newest versions there are, in .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP) --upgrade --upgrade-strategy eager -e ".[offline,test]"
	.venv-newest/bin/python -m pytest -n 2 --nbval-lax

clean:  ## remove the environments, the built notebooks and the runs
	rm -rf .venv .venv-oldest .venv-newest build notebooks/runs runs .pytest_cache .ruff_cache
