# `make demo` and `make test` do everything on a fresh machine; `make gpu` needs no network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
GPU_NAME = $(shell $(PYTHON) -c "import re, torch; print(re.sub('[^a-z0-9]+', '-', torch.cuda.get_device_name().lower()))")

.PHONY: help demo test thorough absent coverage examples docs conformance bench lint dist gpu gpu-test gpu-bench clean

help:
	@echo "make demo   install into $(VENV), then train the reference network on sums of squares"
	@echo "make test   install into $(VENV), then run all tests"
	@echo "make thorough  10 000 random cases per op and backend, against float64; takes hours"
	@echo "make absent  run the tests with numba absent, with triton absent, with both absent"
	@echo "make examples  run all examples and refresh the pictures of the documentation"
	@echo "make docs   build the documentation into build/site"
	@echo "make conformance  run the tests of every op's properties and write docs/conformance.md"
	@echo "make bench  time every op against plain PyTorch on the CPU"
	@echo "make lint   check style, formatting, types, spelling; find dead code"
	@echo "make coverage  run the tests, report lines of fastmlp/ that none reaches; at least 95 % must be"
	@echo "make dist   build sdist and wheel into dist/"
	@echo "make gpu    tests and benches on a CUDA machine that already has torch, triton and numba"
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
	$(BIN)/python examples/gallery.py --out docs/figures

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build

conformance: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -q -r f -p conformance --conformance docs/conformance.md

bench: $(INSTALLED)
	$(BIN)/python bench/run.py
	$(BIN)/python bench/bench_overhead.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/codespell

dist: $(INSTALLED)
	$(BIN)/python -m build

gpu: gpu-test gpu-bench

gpu-install:
	$(PYTHON) -m pip install --no-deps --no-build-isolation -e .

gpu-test: gpu-install
	$(PYTHON) -m pytest

gpu-bench: gpu-install
	mkdir -p bench/results
	$(PYTHON) bench/run.py --device cuda --out bench/results/$(GPU_NAME).json
	$(PYTHON) bench/bench_fit.py --device cuda --json bench/results/$(GPU_NAME)-fit.json
	$(PYTHON) bench/bench_levenberg_marquardt.py --device cuda \
		| tee bench/results/$(GPU_NAME)-levenberg-marquardt.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
