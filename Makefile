# Two commands for a fresh machine: `make demo` shows the main job, `make test` checks everything. Both set themselves up.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
export PYTHONPATH = $(CURDIR)
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: help demo test lint unit bench fuzz coverage clean

help:
	@echo "make demo      the main job, end to end, as a tour"
	@echo "make test      lint, then all tests (as root also with real mounts)"
	@echo "make lint      ruff and mypy --strict"
	@echo "make coverage  the tests once more, with branch coverage of every process"
	@echo "make bench     latency and throughput beside sshfs"
	@echo "make fuzz      the codec, the handshake and the session, for ten minutes"

demo:
	@packaging/dev/prepare.sh $(VENV) demo
	@$(PYTHON) docs/examples/tour/tour.py

test: lint unit

lint:
	@packaging/dev/prepare.sh $(VENV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

unit:
	@packaging/dev/prepare.sh $(VENV)
	$(PYTHON) -m pytest $(PYTEST_FLAGS)

coverage:
	@packaging/dev/prepare.sh $(VENV)
	FUSE_GATED_TEST_COVERAGE=1 $(PYTHON) -m pytest --cov --cov-branch --cov-report=term $(PYTEST_FLAGS)

bench:
	@packaging/dev/prepare.sh $(VENV)
	$(PYTHON) tests/bench/bench.py $(BENCH_FLAGS)

fuzz:
	@packaging/dev/prepare.sh $(VENV)
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check atheris
	$(PYTHON) tests/fuzz/fuzz.py $(FUZZ_FLAGS)

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -prune -exec rm -rf {} +
