# Each target creates .venv and installs into it only when something is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help demo test soak lint bench clean
help:
	@echo "make demo   trace a real training run, replay it, print the tables"
	@echo "make test   run the test suite"
	@echo "make soak   kill 200 training runs and look at what they leave (minutes)"
	@echo "make lint   check style and types"
	@echo "make bench  run every benchmark"
	@echo "make clean  remove .venv and what demo made"

$(STAMP): pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (once) =="
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	@mkdir -p demo
	@echo "== 1/2  training an MLP on scikit-learn's 1,797 digits, every step logged to demo/run.h5 =="
	$(RUN) -m examples.digits --log demo/run.h5 --test-ids demo/test_ids.txt --overwrite
	@echo "== 2/2  replaying it: tracin-replay --log demo/run.h5 --test demo/test_ids.txt =="
	$(VENV)/bin/tracin-replay --log demo/run.h5 --test demo/test_ids.txt --overwrite

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2

soak: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m tests.helpers.kills 200

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	@for file in benchmarks/*.py; do echo "== $$file =="; $(RUN) $$file || exit 1; done

clean:
	rm -rf $(VENV) demo
