# make demo   trains class prompts on the bundled photographs and writes runs/demo/report.html
# make test   ruff, mypy and the fast tests: what continuous integration runs
# make test-notebooks  runs every notebook with its solutions; fails on an error, on an .ipynb that differs from its
#             source, and on a notebook that takes more than twice its stated minutes
# make test-browser    drives JupyterLab, the report and the hover map in Chromium, where that is installed
# make test-processes  two processes equal one; a run that was killed goes on as if it had not been;
#             the self-test on a CPU; nothing mixes devices
# make selftest  what this machine computes, and how fast: eight minutes on a GPU, two on a CPU; runs/selftest
# make lab    opens JupyterLab on the notebooks
# make notebooks  runs the notebooks' text sources and writes the .ipynb files with their outputs
# make bench  every benchmark, about a quarter of an hour on quiet cores; see benchmarks/README.md
# make clean  removes the virtual environment and caches; runs/ stays

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CHECK_VERSION := import sys; (3, 11) <= sys.version_info < (3, 14) or \
	sys.exit("Python %d.%d found, 3.11 to 3.13 expected: make PYTHON=python3.11" % sys.version_info[:2])

.PHONY: demo test test-notebooks test-browser test-processes selftest lab notebooks bench clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/gcpl-lab demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-notebooks: $(STAMP)
	$(BIN)/pytest -m "slow or not slow" tests/test_notebooks.py

test-browser: $(STAMP)
	$(BIN)/pytest -m slow tests/browser

test-processes: $(STAMP)
	$(BIN)/pytest -m slow tests/test_processes.py tests/test_interruption.py tests/test_workers.py tests/test_selftest.py tests/test_elsewhere.py

selftest: $(STAMP)
	$(BIN)/gcpl-lab selftest

lab: $(STAMP)
	$(BIN)/jupyter lab --notebook-dir=notebooks

# The .py files are the sources, solutions included; the .ipynb files are what students get.
notebooks: $(STAMP)
	$(BIN)/gcpl-lab course

# The target .venv makes the environment; the stamp inside it is younger than both files that define it.
.PHONY: .venv
.venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || { $(PYTHON) -c '$(CHECK_VERSION)' && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

bench: $(STAMP)
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
	find gcpl_lab tests -type d -name __pycache__ -prune -exec rm -rf {} +
