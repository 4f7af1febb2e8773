# One target per task; CI runs the same targets. The first use creates the environment, with only what the task needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
APP := $(VENV)/.app
READY := $(VENV)/.ready

.PHONY: demo app test lint type unit test-browser test-integrations chromium score audit licences lock clean

demo: $(DEMO)  ## set up, then segment a bundled scene with the bundled demo model
	$(BIN)/text2seg segment text2seg/demo/scenes/new-scenes/images/scene_0019.jpg --model demo \
		--queries "$(shell cat text2seg/demo/scenes/queries.txt)" --output outputs/demo --overwrite

app: $(APP)  ## set up, then open the browser app with the bundled demo model
	$(BIN)/python app.py

test: lint type unit  ## all checks that a change must pass, except the app's tests in test-browser

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(READY)
	$(BIN)/mypy

# The tests start many processes. With compiled bytecode each imports torch in half the time, so it is written even where
# the environment says not to, as many container images do.
unit test-browser: export PYTHONDONTWRITEBYTECODE :=

unit: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --ignore tests/browser \
		--ignore tests/integrations --durations 10

test-browser: chromium $(READY)  ## only the tests in a real browser
	TEXT2SEG_REQUIRE_BROWSER=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 10 tests/browser

# Each tool has an environment of its own: their requirements contradict each other and ours.
TOOLS := $(or $(TEXT2SEG_TOOLS),.tools)
test-integrations: $(READY) $(patsubst tests/integrations/%.txt,$(TOOLS)/%/.ready,$(wildcard tests/integrations/*.txt))  ## with the real tools, which take several GB
	TEXT2SEG_TOOLS=$(TOOLS) $(BIN)/python -m pytest -rs tests/integrations

$(TOOLS)/%/.ready: tests/integrations/%.txt | $(READY)
	$(PYTHON) -m venv $(@D)
	if test -n "$(UV)" && test -x "$(UV)"; then $(UV_INSTALL) $(@D)/bin/python --requirement $<; \
		else $(@D)/bin/pip install --quiet --requirement $<; fi
	@touch $@

chromium:  ## install Chromium on Debian or Ubuntu if it is missing
	@command -v chromium chromium-browser google-chrome >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

score: $(DEMO)  ## score the demo model on the bundled test scenes
	$(BIN)/python benchmarks/accuracy.py demo

audit: $(READY)  ## find known vulnerabilities of installed packages; fails if the database does not answer
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --local --skip-editable --strict

licences: $(READY)  ## write docs/licences.md from the installed packages
	$(BIN)/pip install --quiet pip-licenses
	$(BIN)/python scripts/licences.py --write

lock: $(READY)  ## write requirements.lock with the latest versions that setup.cfg allows
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile setup.cfg --extra dev --universal --python-version 3.10 --generate-hashes --upgrade \
		--no-header --no-annotate --quiet --output-file requirements.lock

# $(install): install $(PACKAGE) and its requirements in the versions of requirements.lock. uv takes seconds and checks
# the hash of every file. pip, used if uv cannot be installed or with `make UV= …`, takes minutes and checks versions only.
UV := $(BIN)/uv
UV_INSTALL = index=$${PIP_INDEX_URL:-$$($(BIN)/pip config get global.index-url 2>/dev/null)}; \
	$(UV) pip install $${index:+--default-index "$$index"} --python
define install
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(PACKAGE) into $(VENV); torch is large, so the first time takes a while"
	@test -z "$(UV)" || test -x "$(UV)" || $(BIN)/pip install --quiet --disable-pip-version-check uv || \
		echo "uv cannot be installed, so pip is used; this takes some minutes"
	@if test -n "$(UV)" && test -x "$(UV)"; then \
		$(UV_INSTALL) $(BIN)/python --constraint requirements.lock --editable "$(PACKAGE)"; \
	else \
		sed -e '/--hash=/d' -e 's/ *\\$$//' requirements.lock >$(VENV)/versions.txt && \
		$(BIN)/pip install --quiet --constraint $(VENV)/versions.txt --editable "$(PACKAGE)"; \
	fi
	@touch $@
endef

PINS := setup.cfg pyproject.toml requirements.lock

$(DEMO): PACKAGE = .
$(APP): PACKAGE = .[app,explain]
$(READY): PACKAGE = .[dev]

$(DEMO): $(PINS)  # the same packages as `pip install .`
	$(install)

$(APP): $(PINS)
	$(install)

$(READY): $(PINS)  # everything that the tests need
	$(install)
	@touch $(DEMO) $(APP)

clean:
	rm -rf $(VENV) outputs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
