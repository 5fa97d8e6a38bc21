# make demo    install, run the demo campaign on all cores, show its best candidates (about 15 minutes)
# make test    install, run all tests
# make slurm   install, run all tests on a Slurm cluster that they start themselves (root; about half an hour)
# make lint    install, check style, types and the workflow
# make config  write config/default.yaml and config/schema.json anew after a change of a setting
# make clean   remove everything the demo wrote

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test slurm lint config clean install

demo: $(STAMP)
	snakemake --cores all
	dao-pipeline summary results/demo

# One thread per worker: tests run side by side.
test: $(STAMP)
	OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadfile

slurm: $(STAMP)
	OMP_NUM_THREADS=1 python -m pytest tests/slurm -m "slurm or slurm_long"

lint: $(STAMP)
	ruff check .
	ruff format --check .
	mypy src $(wildcard benchmarks/*.py)
	snakefmt --check Snakefile workflow
	snakemake --lint

config: $(STAMP)
	dao-pipeline generate-config

clean:
	rm -rf results/demo work/demo logs/demo

install: $(STAMP)

# torch first and by itself: resolved together with the rest, pip would fetch builds for every CUDA version.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[login,chgnet,dev]"
	touch $@
