# make run           execute the six notebooks into build/notebooks, as .ipynb and .html
# make test          unit tests, and every notebook against its stored outputs
# make test-browser  every notebook in JupyterLab, in the Chromium or Chrome that is there
# make lab           open the notebooks in JupyterLab
# make test-oldest   the tests with the oldest versions that pyproject.toml allows, in .venv-oldest
# make test-newest   the tests with the newest versions there are, in .venv-newest
# Windows: README.md has the same as plain pip and conda commands.

PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check install

.PHONY: run test test-browser lab test-oldest test-newest clean

run: .venv/installed
	$(BIN)/agnews notebooks --target build/notebooks

test: .venv/installed
	$(BIN)/python -m pytest

test-browser: .venv/browser
	$(BIN)/python -m pytest tests/browser

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

# Constrained: an unpinned torch would be another one, and on Linux several gigabytes of CUDA.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c constraints.txt -e ".[offline]"
	touch $@

.venv/browser: .venv/installed
	$(BIN)/python $(PIP) -c constraints.txt -e ".[offline,browser]"
	touch $@

# Lax: the stored outputs are those of constraints.txt; with other versions a notebook must only run to its end.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest --nbval-lax

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) -c constraints-oldest.txt -e ".[offline]"
	touch $@

# Asked for anew each time: what is newest changes without any file of ours.
test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP) --upgrade --upgrade-strategy eager -e ".[offline]"
	.venv-newest/bin/python -m pytest --nbval-lax

clean:
	rm -rf .venv .venv-oldest .venv-newest build notebooks/runs runs
