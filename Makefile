# One target per job; CI runs the same ones. The environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo app test lint type unit test-browser chromium score audit licences lock clean

demo: $(READY)  ## set up, then cut things out of a bundled scene with the bundled demo model
	$(BIN)/text2seg segment text2seg/demo/scenes/new-scenes/images/scene_0019.jpg \
		--queries "$(shell cat text2seg/demo/scenes/queries.txt)" --output outputs/demo

app: $(READY)  ## set up, then open the browser app on the bundled demo model
	$(BIN)/python app.py

test: lint type unit  ## everything that must pass before a change goes in; test-browser has the app's own

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --ignore tests/browser

test-browser: chromium $(READY)  ## the tests in a real browser alone
	TEXT2SEG_REQUIRE_BROWSER=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/browser

chromium:  ## Debian's and Ubuntu's Chromium, where there is none yet
	@command -v chromium chromium-browser google-chrome >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

score: $(READY)  ## score the demo model on the bundled test scenes
	$(BIN)/python scripts/score_demo.py

audit: $(READY)  ## known faults of all that is installed; fails where the database does not answer
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --local --skip-editable --strict

licences: $(READY)  ## write docs/licences.md from what is installed
	$(BIN)/pip install --quiet pip-licenses
	$(BIN)/python scripts/licences.py --write

lock: $(READY)  ## write requirements.lock anew: the latest versions that setup.cfg allows
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile setup.cfg --extra dev --universal --python-version 3.10 --generate-hashes --upgrade \
		--no-header --no-annotate --quiet --output-file requirements.lock

$(READY): setup.cfg pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
ifeq ($(LOCKED),)  # the versions of requirements.lock, because pip looks for versions that fit together for half an hour
	sed -e '/--hash=/d' -e 's/ *\\$$//' requirements.lock >$(VENV)/versions.txt
	$(BIN)/pip install --quiet --constraint $(VENV)/versions.txt --editable ".[dev]"
else  # the very files of requirements.lock: make test LOCKED=1
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
endif
	touch $@

clean:
	rm -rf $(VENV) outputs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
