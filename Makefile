# make run           execute the six notebooks into build/notebooks, as .ipynb and .html
# make test          unit tests, and every notebook against its stored outputs
# make test-browser  every notebook in JupyterLab, in the Chromium or Chrome that is there
# make lab           open the notebooks in JupyterLab
# Windows: README.md has the same as plain pip and conda commands.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-browser lab clean

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
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[offline]"
	touch $@

.venv/browser: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[offline,browser]"
	touch $@

clean:
	rm -rf .venv build notebooks/runs runs
