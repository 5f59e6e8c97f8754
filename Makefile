PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := run

.PHONY: run test check bench format clean

# One stamp a set of extras: reinstalled when the project's metadata or the pins change.
$(VENV)/.installed-run $(VENV)/.installed-test $(VENV)/.installed-check: $(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.$(if $(filter-out run,$*),[$*])'
	touch $@

run: $(VENV)/.installed-run
	$(BIN)/dicom-etl phantom $(RUN)/data --force
	$(BIN)/dicom-etl build $(RUN)/data $(RUN)/out.h5 --contours i,o --partial --split 70/15/15 --force
	$(BIN)/dicom-etl report $(RUN)/out.h5 --overlays $(RUN)/overlays --force
	$(BIN)/python examples/draw_batches.py $(RUN)/out.h5

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses auto

check: $(VENV)/.installed-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/python bench/build.py --pairs 1000 --rounds 3

format: $(VENV)/.installed-check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(RUN) build *.egg-info
