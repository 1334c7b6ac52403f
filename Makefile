# The developers' commands. Every one of them may be run on a bare machine, again and again, and asks nothing.
# .ci/prepare installs what the system lacks, by name, and says what for; the rest lives in .venv and build/.
PYTHON ?= python3
ARGS ?=
EXTRAS ?= test
comma := ,
INSTALLED := .venv/.installed-$(subst $(comma),-,$(EXTRAS))
BIN := .venv/bin
SOURCES := pyproject.toml setup.py $(wildcard native/Makefile native/src/* native/include/* bpf/Makefile bpf/*.[ch])

.PHONY: help try test lint format perf-test bench prepared clean

help:
	@echo 'make try        shows on a small suite what --isolate catches'
	@echo 'make test       runs the test suite (ARGS="-k name" chooses)'
	@echo 'make lint       ruff, clang-format, mypy, import-linter'
	@echo 'make format     rewrites the sources as lint wants them'
	@echo 'make bench      measures what a test costs, beside a bare fork and the other plugins'
	@echo 'make perf-test  builds bin/perf-test, the performance tool of the network data plane'
	@echo 'make clean      removes what was built, and .venv'

prepared:
	@PYTHON=$(PYTHON) bash .ci/prepare

$(INSTALLED): $(SOURCES) | prepared
	@echo "== a virtual environment in .venv, with this checkout in it"
	@test -d .venv || rm -f .venv # a plain file is what tox leaves to say where its environment is
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -q -e '.[$(EXTRAS)]'
	@touch $@

try: $(INSTALLED)
	@$(BIN)/python .ci/try.py $(ARGS)

# A thousand runs of pytest inside the suite import the package, and write no bytecode: they find it there.
test: $(INSTALLED)
	@$(BIN)/python -m compileall -q pytest_isolate
	@$(BIN)/python -m pytest -p no:asyncio -p no:randomly $(ARGS)

.venv/.tox: | $(INSTALLED)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -q 'tox>=4.14'
	@touch $@

lint: .venv/.tox
	@$(BIN)/tox run -q -e lint,type,layers

format: .venv/.tox
	@$(BIN)/tox exec -q -e lint -- sh -c 'ruff check --fix . ; ruff format . ; git ls-files "native/*.[ch]" "bpf/*.[ch]" | xargs -r clang-format -i --style=file'

perf-test: $(INSTALLED)
	@$(MAKE) -s -C bpf
	@mkdir -p bin
	@printf '#!/bin/sh\n# Made by make perf-test: loads, attaches, adds test policies, prints statistics every 5 s.\nexec "%s/$(BIN)/python" -m pytest_isolate.network.perf "$$@"\n' "$(CURDIR)" >bin/perf-test
	@chmod +x bin/perf-test
	@echo 'bin/perf-test is made; run: sudo bin/perf-test --duration 30'

bench: $(INSTALLED)
	@$(BIN)/python benchmarks/per_test.py $(ARGS)

clean:
	@if [ -f native/Makefile ]; then $(MAKE) -s -C native clean; fi
	@if [ -f bpf/Makefile ]; then $(MAKE) -s -C bpf clean; fi
	rm -rf .venv .tox build dist *.egg-info pytest_isolate/_native pytest_isolate/_bpf .mypy_cache .ruff_cache .pytest_cache
