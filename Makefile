# Each target installs what it needs into .venv first, so nothing else comes before it.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
# one thread: two on a busy pair of cores wait for each other, many times slower
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test quick check dist lab docs notebooks export bench gpu clean

help:  ## show the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

# On Linux without an NVIDIA GPU the build of PyTorch for CPUs, a tenth of the size, is taken where it can be had; TORCH_INDEX says from where.
.venv/.installed: settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ecgmm needs Python 3.11 or newer, this is %s" % sys.version.split()[0] or 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install_torch.py -c constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.installed  ## simulate a database, train on it, and write a report (DEMO=folder)
	$(BIN)/ecgmm_demo --out $(DEMO)

test: .venv/.installed  ## every notebook, the repository's own rules, and the end-to-end tests, on two processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -q --durations=15

quick: .venv/.installed  ## the rules, unit tests and fast notebooks: under two minutes, nothing is trained or built
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -q --quick

check: .venv/.installed  ## format, lint, types and spelling of what you edit
	$(BIN)/ruff format nbs tests tools setup.py && $(BIN)/ruff check nbs tests tools setup.py
	$(BIN)/mypy && $(BIN)/codespell

dist: .venv/.installed  ## source archive and wheel into dist
	rm -rf dist && $(BIN)/python -m build --no-isolation --outdir dist .

lab: .venv/.installed  ## open the notebooks
	$(BIN)/jupyter lab nbs

export: .venv/.installed  ## notebooks -> package and README
	$(BIN)/nbdev_clean && $(BIN)/nbdev_export && $(BIN)/python tools/make_readme.py

notebooks: .venv/.installed  ## run every notebook in place and save its outputs
	$(BIN)/python tools/run_notebooks.py

bench: .venv/.installed  ## the speed ratios, each measured side by side in one run
	$(BIN)/python tools/bench.py

docs: .venv/.installed  ## build the site into _docs (needs Quarto: the quarto-cli package brings it)
	$(BIN)/python tools/make_docs.py

gpu: .venv/.installed  ## what only a GPU can show, in under six minutes (OUT=folder)
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/gpu.sh $(OUT)

clean:  ## remove the environment, the site and what builds leave; what you made with the commands is yours and stays
	rm -rf .venv _docs _proc build dist ecgmm.egg-info
