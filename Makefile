# `make demo` and `make test` do everything on a fresh machine; `make gpu` needs no network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SECONDS ?= 400
OUT ?= build/device

.PHONY: help demo test oldest thorough absent coverage examples docs conformance bench lint dist gpu clean

help:
	@echo "make demo   install into $(VENV), then train the reference network on sums of squares"
	@echo "make test   install into $(VENV), then run all tests"
	@echo "make oldest run all tests with the lowest versions that pyproject.toml allows (downloads GBs)"
	@echo "make thorough  10 000 random cases per op and backend, against float64; takes hours"
	@echo "make absent  run the tests with numba absent, with triton absent, with both absent"
	@echo "make examples  run all examples and refresh the pictures of the documentation"
	@echo "make docs   build the documentation into build/site"
	@echo "make conformance  run the tests of every op's properties and write docs/conformance.md"
	@echo "make bench  time every op against plain PyTorch on the CPU"
	@echo "make lint   check style, formatting, types, spelling; find dead code"
	@echo "make coverage  run the tests, report lines of fastmlp/ that none reaches; at least 95 % must be"
	@echo "make dist   build sdist and wheel into dist/"
	@echo "make gpu    tests and times on a CUDA machine that already has torch, triton and numba;"
	@echo "            SECONDS=400 and OUT=build/device say how long and where to"
	@echo "make clean  remove what make and the builds created"

# the stamp is newer than the files that say what to install
$(INSTALLED): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt setuptools -e ".[test,plots,bench,examples,dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/x2_sum.py
	$(BIN)/python examples/x2_sum_lm.py --restarts 0

test: $(INSTALLED)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal --durations 25

# "make test" is the other end, the newest that constraints.txt names
oldest:
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/oldest/bin/uv pip install --quiet --python build/oldest/bin/python \
		--resolution lowest-direct -e ".[test]"
	OMP_WAIT_POLICY=passive build/oldest/bin/python -m pytest -n 2 --dist worksteal

thorough: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 tests/robustness --hypothesis-profile thorough

absent: $(INSTALLED)
	for absent in "numba llvmlite" "triton" "numba llvmlite triton"; do \
		ABSENT="$$absent" PYTHONPATH=tests/absent $(BIN)/python -m pytest -n 2 --dist worksteal \
			|| exit 1; \
	done

coverage: $(INSTALLED)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 --dist worksteal -q \
		--ignore tests/kernels --ignore tests/bench
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

examples: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt lightning
	OMP_WAIT_POLICY=passive $(BIN)/python examples/gallery.py --jobs 2 --out docs/figures --pages docs/experiments

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build

conformance: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -q -r f -p conformance --conformance docs/conformance.md

bench: $(INSTALLED)
	$(BIN)/python bench/run.py
	$(BIN)/python bench/bench_overhead.py
	$(BIN)/python bench/bench_ensemble.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/codespell

dist: $(INSTALLED)
	$(BIN)/python -m build

gpu:
	$(PYTHON) bench/on_device.py --seconds $(SECONDS) --out $(OUT)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
