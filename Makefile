# Two commands for a fresh machine: `make demo` shows the main job, `make test` checks everything. Both set themselves up.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
export PYTHONPATH = $(CURDIR)
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: help demo test lint unit bench chaos fuzz coverage system arm64 man docs deb rpm repo packages-test docker-test autopkgtest clean

help:
	@echo "make demo      the main job, end to end, as a tour"
	@echo "make test      lint, then all tests (as root also with real mounts)"
	@echo "make lint      ruff and mypy --strict"
	@echo "make system    the service as installed, under a real systemd in a guest (root)"
	@echo "make arm64     the packages in a virtual machine of ARM64, with a kernel and systemd of its own (root; several minutes)"
	@echo "make deb       Debian packages into build/; make repo: a signed apt repository of them; make rpm: the same for Fedora"
	@echo "               (elsewhere than on Debian 13: ROOT=DIR, a folder for a root filesystem of it, made if it is missing)"
	@echo "make packages-test  the packages, built anew and put through install, upgrade, removal in guests (root)"
	@echo "make docker-test  the images, and both packages on two machines with a network between, in a Docker engine of its own (root)"
	@echo "make autopkgtest  debian/tests, by autopkgtest in a container, and all that it says (root)"
	@echo "make man       manual pages and completions anew, from the parsers and the documents"
	@echo "make docs      the documents as a site, in build/site"
	@echo "make coverage  the tests once more, with branch coverage of every process"
	@echo "make bench     programs on a mount beside sshfs at four distances (root; BENCH_FLAGS=--quick: minutes, --full: hours);"
	@echo "               BENCH_FLAGS=--latency: one operation; --profile: and where its time goes; --sessions: a thousand sessions"
	@echo "make chaos     everything that can fail fails, 200 times, under a checking load (root; CHAOS_FLAGS=--help)"
	@echo "make fuzz      what strangers may send, mutated by coverage, for ten minutes"

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
	@packaging/dev/prepare-docs.sh $(VENV)
	$(PYTHON) -m pytest $(PYTEST_FLAGS)

coverage:
	@packaging/dev/prepare.sh $(VENV)
	@packaging/dev/prepare-docs.sh $(VENV)
	$(PYTHON) tests/measuring/measure.py $(PYTEST_FLAGS)

bench:
	@packaging/dev/prepare.sh $(VENV)
	@packaging/dev/prepare-bench.sh
	$(PYTHON) tests/bench/bench.py $(BENCH_FLAGS)

chaos:
	@packaging/dev/prepare.sh $(VENV)
	$(PYTHON) tests/chaos/chaos.py $(CHAOS_FLAGS)

fuzz:
	@packaging/dev/prepare.sh $(VENV)
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check atheris || true
	$(PYTHON) tests/fuzz/fuzz.py $(FUZZ_FLAGS)

system:
	@packaging/dev/prepare.sh $(VENV)
	@command -v mmdebstrap >/dev/null || apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
	FUSE_GATED_SYSTEM=1 $(PYTHON) -m pytest --drivers kernel tests/system $(PYTEST_FLAGS)

arm64:
	@packaging/dev/prepare.sh $(VENV)
	@(for name in mmdebstrap qemu-system-aarch64 arch-test; do command -v $$name || exit; done) >/dev/null && \
	  [ -e /usr/lib/binfmt.d/qemu-aarch64.conf ] || \
	  apt-get install -y -qq --no-install-recommends mmdebstrap qemu-system-arm qemu-user-static arch-test >/dev/null
	FUSE_GATED_ARM64=1 $(PYTHON) -m pytest --drivers kernel --timeout 1800 tests/arm64 $(PYTEST_FLAGS)

# Without ROOT they want to run on Debian 13, with the build dependencies of debian/control.
IN_ROOT = $(if $(ROOT),--root $(ROOT))

deb: $(ROOT)
	packaging/dev/build-deb.sh $(IN_ROOT)

rpm: $(ROOT)
	packaging/dev/build-rpm.sh $(IN_ROOT)

repo: deb
	packaging/dev/build-repo.sh $(IN_ROOT)

ifdef ROOT
$(ROOT):
	packaging/dev/build-root.sh $(ROOT)
endif

packages-test:
	@packaging/dev/prepare.sh $(VENV)
	@command -v mmdebstrap >/dev/null || apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
	FUSE_GATED_PACKAGES=1 $(PYTHON) -m pytest --timeout 1200 tests/packaging $(PYTEST_FLAGS)

docker-test:
	@packaging/dev/prepare.sh $(VENV)
	@packaging/dev/prepare-docker.sh $(VENV)
	FUSE_GATED_DOCKER=1 $(PYTHON) -m pytest --timeout 600 tests/docker $(PYTEST_FLAGS)

autopkgtest:
	@packaging/dev/prepare.sh $(VENV)
	@packaging/dev/prepare-docker.sh $(VENV)
	FUSE_GATED_DOCKER=1 $(PYTHON) -m pytest --timeout 600 --capture=no --quiet tests/docker/test_autopkgtest.py $(PYTEST_FLAGS)

man:
	@packaging/dev/prepare.sh $(VENV)
	$(PYTHON) packaging/dev/man.py
	$(PYTHON) packaging/dev/completion.py

docs:
	@packaging/dev/prepare.sh $(VENV)
	@packaging/dev/prepare-docs.sh $(VENV)
	$(PYTHON) -m mkdocs build --quiet

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -prune -exec rm -rf {} +
