# Each target sets itself up in .venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
RECIPE := recipes/digits

.PHONY: demo test lint acceptance clean

demo: .venv/.installed  ## the digits recipe, from nothing to runs/digits/report.html
	$(BIN)/unidiffuser shards -c $(RECIPE)/shards.yaml
	$(BIN)/unidiffuser fit-codec -c $(RECIPE)/autoencoder.yaml
	$(BIN)/unidiffuser fit-codec -c $(RECIPE)/clip.yaml
	$(BIN)/unidiffuser fit-codec -c $(RECIPE)/text_decoder.yaml
	$(BIN)/unidiffuser encode -c $(RECIPE)/encode.yaml
	$(BIN)/unidiffuser fit -c $(RECIPE)/fit.yaml
	$(BIN)/unidiffuser sample runs/digits "image | text" --given text="a red seven" --num 16 --guidance 2 --out runs/digits/samples
	$(BIN)/unidiffuser evaluate runs/digits -c $(RECIPE)/evaluate.yaml

test: .venv/.installed  ## every test but the counted campaigns; under 10 minutes
	$(BIN)/python -m pytest -m "not acceptance"

acceptance: .venv/.installed  ## the long, counted campaigns; their outcome is committed in docs/
	$(BIN)/python -m pytest -m acceptance -s --timeout=3600

lint: .venv/.installed  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/.installed: pyproject.toml constraints.txt plugins/unidiff-digits/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]" --editable plugins/unidiff-digits
	touch $@

clean:
	rm -rf runs out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
