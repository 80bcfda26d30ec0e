# Each target creates .venv and installs into it only when something is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
TRAINERS := transformers lightning accelerate ignite skorch fastai lora

.PHONY: help demo test test-oldest test-integrations soak lint bench docs constraints clean
.PHONY: example-mnist example-mislabelled example-text example-approximation-study
.PHONY: example-bert example-cnn
help:
	@echo "make demo         trace a real training run, replay it, print the tables"
	@echo "make example-X    mnist, mislabelled, text, bert, cnn, approximation-study: real data, minutes"
	@echo "make test         run the test suite"
	@echo "make test-oldest  run it with the oldest versions that pyproject.toml states"
	@echo "make test-integrations  run the tests with the trainers of other libraries"
	@echo "make soak         kill 200 training runs and 50 replaying jobs, look at what they leave (half an hour)"
	@echo "make lint         check style and types: what .pre-commit-config.yaml lists"
	@echo "make bench        run every benchmark"
	@echo "make docs         build the documentation into site/"
	@echo "make constraints  pin what pyproject.toml asks for (needs uv and the network)"
	@echo "make clean        remove what these targets made"

# $(call install,CONSTRAINTS,EXTRA): this package, editable, into the folder of the target.
# The build back end is installed first: with build isolation pip would take its newest version.
# What is pinned stands in the target for tests/house/test_packaging.py.
define install
	@echo "== installing into $(@D) (once) =="
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint $(1) setuptools
	$(@D)/bin/python -m pip install --quiet --constraint $(1) --no-build-isolation --editable ".[$(2)]"
	@echo $(1) > $@
endef

$(STAMP): pyproject.toml constraints.txt
	$(call install,constraints.txt,dev)

$(VENV)/.docs: $(STAMP)
	$(call install,constraints.txt,docs)

$(VENV)/.integrations: $(STAMP)
	$(call install,constraints.txt,integrations)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(call install,constraints-oldest.txt,dev)

demo: $(STAMP)
	@mkdir -p demo
	@echo "== 1/2  training an MLP on scikit-learn's 1,797 digits, every step logged to demo/run.h5 =="
	$(RUN) -m examples.digits --log demo/run.h5 --test-ids demo/test_ids.txt --overwrite
	@echo "== 2/2  replaying it: tracin-replay --log demo/run.h5 --test demo/test_ids.txt --report =="
	$(VENV)/bin/tracin-replay --log demo/run.h5 --test demo/test_ids.txt --report --overwrite

example-mnist example-mislabelled example-text example-approximation-study: $(STAMP)
	$(RUN) -m examples.$(subst -,_,$(@:example-%=%))

example-bert example-cnn: $(VENV)/.integrations
	$(RUN) -m examples.$(@:example-%=%)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n 2

test-integrations: $(VENV)/.integrations
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q tests/integrations \
		$(foreach page,$(TRAINERS),"tests/house/test_docs.py::test_blocks_run[docs/how-to/$(page).md]")

soak: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m tests.helpers.kills 200
	OMP_NUM_THREADS=1 $(RUN) -m tests.helpers.killed_jobs 50

lint: $(STAMP)
	$(VENV)/bin/pre-commit run --all-files

bench: $(STAMP)
	@for file in benchmarks/*.py; do echo "== $$file =="; $(RUN) $$file || exit 1; done

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# A pin stays while it fits; `make constraints UPGRADE=--upgrade` takes the newest of everything.
# One resolution holds for all Pythons from 3.10; the back end comes from [build-system].
PIN := sed -n 's/^requires = \["\(.*\)"\]/\1/p' pyproject.toml | uv pip compile --quiet \
	--universal --python-version 3.10 --no-annotate --custom-compile-command "make constraints"
constraints:
	$(PIN) --all-extras $(UPGRADE) --output-file constraints.txt - pyproject.toml
	$(PIN) --extra dev --resolution lowest-direct --output-file constraints-oldest.txt - pyproject.toml

clean:
	rm -rf $(VENV) $(OLDEST) demo site
