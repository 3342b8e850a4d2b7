# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-long test-faults bench dist docs format clean

## Train, compare and benchmark on the built-in names: a minute and a half after installation.
demo: $(VENV)/installed
	$(BIN)/flashmore demo --out demo --picture demo/names.png

## Every check that CI runs: format, lint, types, tests.
test: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(BIN)/mypy & types=$$!; \
	$(BIN)/pytest --numprocesses auto --dist worksteal; tests=$$?; \
	wait $$types && exit $$tests

## Every hostile file, damaged run and killed process.
test-faults: $(VENV)/installed-dev
	$(BIN)/pytest -m faults --numprocesses auto --dist worksteal

## The checks that take minutes (makemore's losses, the demo), and new random examples for the property tests.
test-long: $(VENV)/installed-dev
	$(BIN)/pytest -m long
	HYPOTHESIS_PROFILE=new $(BIN)/pytest

## What became slower since the last release, or since AGAINST=a commit or wheel: 15 minutes.
bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/regressions.py $(if $(AGAINST),--against $(AGAINST))

## Builds the sdist and the wheel into dist/, and runs the installed wheel outside the checkout.
dist: $(VENV)/installed-dev
	$(BIN)/python scripts/check_dist.py

## The documentation site, in site/; any static host can serve it.
docs: $(VENV)/installed-docs demo/names.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	$(BIN)/python scripts/check_links.py site

demo/names.html:
	$(MAKE) demo

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flashmore needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
