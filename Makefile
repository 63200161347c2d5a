# What a person does with a clone; `make` alone lists it. ARGS adds arguments, as in `make test-fast ARGS="-k samme -x"`.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Test files are compiled once and kept, whatever the shell says: to compile them takes a third of `make test-fast`.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help setup dev demo test test-fast test-long check browser format lint docs wheel lock clean

# The interpreter behind .venv, 3.11 or 3.12: `make setup PYTHON=/some/python` chooses another one.
ifndef PYTHON
PYTHON := $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || echo python3)
endif
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
DEV := $(VENV)/.dev-done
CHROMIUM := command -v chromium || command -v chromium-browser || command -v google-chrome
UNTESTED := make: the page in the browser was not tested, because there is no Chromium here. To test it, install Chromium \
	(Debian, Ubuntu: apt-get install chromium), then run .venv/bin/pytest tests/serving/test_ui.py
UNCOMPILED := /(tests?|_tests|rllib)/|/transformers/models/(?!auto|llama)
UNITS := not processes and not ray and not e2e and not faults and not cluster and not browser and not gpu and not long
# Makes .venv, where there is none, with an interpreter that can.
define venv
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "setup: no $(PYTHON) here. Install Python 3.11 or 3.12 (Debian: apt-get install python3 python3-venv)," >&2; \
		echo "       or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
		echo "setup: $(PYTHON) is $$("$(PYTHON)" --version 2>&1), but Python 3.11 or 3.12 is needed." >&2; \
		echo "       Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "setup: $(PYTHON) has no venv module. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
endef
# Compiles on all cores, which pip does not do, and without what nobody imports; some packages hold files of Python 2.
define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '$(1)'
	$(BIN)/python -m compileall -qq -j 0 -x '$(UNCOMPILED)' $(VENV)/lib ensemw2s || true
endef
# Files side by side, in the order of tests/conftest.py: what starts processes of its own waits for them half of its time.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -q --durations=25

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv from the pinned versions (once; again when they change).

dev: $(DEV)  ## Add what tests, lint and docs need to it.

demo: setup  ## Run the whole pipeline on the embedded default; ends with a table and report.html.
	$(BIN)/ensemw2s run quickstart $(ARGS)

test: check browser  ## Format, lint, types and every test but the long ones and those for a GPU.
	$(PYTEST) -m "not gpu and not long" $(ARGS)
	@{ $(CHROMIUM); } >/dev/null || echo "$(UNTESTED)"

test-fast: check  ## The same without Ray, the pipeline and what takes seconds: a minute.
	$(PYTEST) -p no:schemathesis -m "not slow and $(UNITS)" $(ARGS)

test-long: check browser  ## Every test but those for a GPU, the slow suites too.
	$(PYTEST) -m "not gpu" $(ARGS)
	@{ $(CHROMIUM); } >/dev/null || echo "$(UNTESTED)"

check: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers auto

browser:  # installs Chromium and curl where it may; where it may not, the tests that need them are skipped
	@{ $(CHROMIUM) && command -v curl; } >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update --quiet && DEBIAN_FRONTEND=noninteractive \
		apt-get install --quiet --yes --no-install-recommends chromium curl || true; fi

format: dev  ## Format the code and mend what ruff can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: check  ## Format, lint and types, changing nothing.

docs: dev  ## Write the generated pages and build the site into site/, strictly.
	$(BIN)/python -m ensemw2s.config.docs > $(VENV)/config.md
	mv $(VENV)/config.md docs/config.md
	$(BIN)/python docs/refresh_results.py docs/studies/*.json*
	$(BIN)/python docs/refresh_costs.py
	$(BIN)/python benchmarks/tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "docs: open site/index.html"

wheel: dev  ## Build the wheel into dist/.
	rm -rf build  # files of an older build would get into the wheel
	$(BIN)/pip wheel . --no-deps --no-build-isolation --quiet --disable-pip-version-check --wheel-dir dist

lock: dev  ## Write constraints.txt from what .venv holds.
	{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --all --exclude pip --exclude-editable; } \
		| sed -E -e '/^[^#].* @ /d' -e '/^-e /d' -e 's/^([^#][^+]*)\+.*$$/\1/' > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt
	touch $(STAMP)
	touch $(DEV)

clean:  ## Remove .venv, caches and build output; runs/ stays.
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -type d -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	$(venv)
	@echo "setup: installing the pinned versions into $(VENV); the first time takes some minutes"
	$(call install,.)
	@touch $@
	@echo "setup: done"

# Of a fresh clone everything is installed at once; of one that has run the demo, only what is missing.
$(DEV): pyproject.toml constraints.txt
	$(venv)
	@echo "setup: installing the pinned versions and test tools into $(VENV); the first time takes some minutes"
	$(call install,.[dev])
	@touch $(STAMP)
	@touch $@
	@echo "setup: done"
