# make demo   the whole way on synthetic films        make test   the test suite
# make style  format, lint, types, import floors       make check  style and tests
# make chaos  N trials of kills and failing stores (N=100 takes about an hour and a half on two cores)

PYTHON ?= python3
N ?= 100
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-engine test-rest check style chaos clean

demo: $(STAMP)
	$(BIN)/pneumobatch demo

# An engine waits half of its time: the tests of shared engines run beside all others.
test: $(STAMP)
	@$(MAKE) --no-print-directory --jobs 2 test-engine test-rest

test-engine: $(STAMP)
	$(BIN)/python -m pytest -m lane_engine

test-rest: $(STAMP)
	$(BIN)/python -m pytest -m "not lane_engine"

check: style test

chaos: $(STAMP)
	$(BIN)/python -m tests.chaos --trials $(N)

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# uv installs several times faster; pip is there on every machine.
$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
		uv venv -q --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
