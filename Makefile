PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := run
# Workers take the tests in order, so that most fixtures of a module are made once.
PYTEST := $(BIN)/python -m pytest --dist worksteal
LONG := tests/docs/test_examples.py tests/torture tests/test_shapes.py tests/test_dask.py

# Else each of the hundreds of processes of the tests would compile all modules.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test test-long test-frameworks test-page torture fuzz check docs bench format clean

# One stamp a set of extras: reinstalled when the project's metadata or the pins change.
$(VENV)/.installed-run $(VENV)/.installed-test $(VENV)/.installed-check $(VENV)/.installed-docs: $(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.$(if $(filter-out run,$*),[$*])'
	touch $@

run: $(VENV)/.installed-run
	$(BIN)/dicom-etl phantom $(RUN)/data --force
	$(BIN)/dicom-etl build $(RUN)/data $(RUN)/out.h5 --contours i,o --partial --split 70/15/15 --force
	$(BIN)/dicom-etl report $(RUN)/out.h5 --overlays $(RUN)/overlays --force
	$(BIN)/python examples/draw_batches.py $(RUN)/out.h5

test: $(VENV)/.installed-test
	$(PYTEST) --numprocesses auto --ignore tests/frameworks --ignore tests/page $(LONG:%=--ignore %)

# Whole runs of commands: every example of the documentation, failing disks, kills, a cluster.
test-long: $(VENV)/.installed-test
	$(PYTEST) --numprocesses auto $(LONG)

# PyTorch is large and not needed by any other command: its tests are apart. TensorFlow is left out:
# it needs an older h5py than constraints.txt has.
test-frameworks: $(VENV)/.installed-test
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt torch==2.13.0 torchdata==0.11.0
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt \
		monai==1.6.1 torchio==1.2.1 albumentations==2.0.8 lightning==2.6.6 jax==0.10.2 || \
		echo "The libraries of the recipes cannot be installed here: their tests skip."
	$(PYTEST) --numprocesses 2 tests/frameworks "tests/docs/test_examples.py::test_the_examples_of_a_page_run[docs/pytorch.md]"

# The browser's driver and the reader of data cards are large, and not needed by any other command.
test-page: $(VENV)/.installed-test
	$(BIN)/python -m pip install -qq --disable-pip-version-check mlcroissant==1.1.1 playwright==1.65.2 axe-playwright-python==0.1.8 || \
		echo "Playwright, axe and mlcroissant cannot be installed here: the tests that need them skip."
	$(PYTEST) --numprocesses 2 tests/page

# Every failing call in every way, and hundreds of signals and kills: minutes.
torture: $(VENV)/.installed-test
	$(PYTEST) --numprocesses auto --thorough tests/torture

# Mutated files, and files of odd parts, into every parser, each target for SECONDS.
SECONDS ?= 60
fuzz: $(VENV)/.installed-test
	FUZZ_SECONDS=$(SECONDS) $(PYTEST) --numprocesses auto -rP tests/fuzz/fuzz_parsers.py tests/fuzz/fuzz_structures.py

check: $(VENV)/.installed-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs docs/_build/html

bench: $(VENV)/.installed-test
	$(BIN)/python bench/build.py --pairs 1000 --rounds 3
	$(BIN)/python bench/update.py --pairs 1000 --rounds 3
	$(BIN)/python bench/resume.py --pairs 1000 --rounds 3
	$(BIN)/python bench/verify.py --pairs 1000 --rounds 3
	$(BIN)/python bench/loader.py --rows 500 --rounds 1
	$(BIN)/python bench/augment.py --rows 500 --rounds 1
	$(BIN)/python bench/page.py --pairs 500

format: $(VENV)/.installed-check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(RUN) build docs/_build docs/_generated *.egg-info
