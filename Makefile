# Twelve verbs. Each installs what it needs: Debian packages (as root), and the Python ones in .venv.
#
#   make demo     serve an image in a private network namespace, and use it   (KEEP=1: keep serving)
#   make plug     kill the server in the middle of a client's cp -a, judge the image, start it again
#   make test     check, then all tests    (PROCESSES=2 that share them)
#   make check    format, lint, types, imports, tidiness
#   make unit     the tests that need neither root nor a guest
#   make crash    crash states of file systems, as many as you like   (STATES=20000 SEED=1)
#   make fuzz     broken frames in every state of a connection     (FRAMES=1000000 SEED=1)
#   make flood    floods of all kinds under a working client          (SECONDS=60: of each)
#   make bench    how fast is it?   (ROWS=GETATTR: of the server; PARTS=live: of images)
#   make venv     the Python environment alone
#   make guest    the small Linux machine with the kernel's NFS client that tests boot
#   make clean    remove everything that was made here

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTHON_TOOLS := tools/guest-build tools/guest-run tools/capture-oracle tools/conformance

.PHONY: demo plug test check unit crash fuzz flood bench venv guest clean

demo: .cache/packages-demo $(VENV)/.made
	PYTHON=$(BIN)/python tools/demo

plug: $(VENV)/.made guest
	PYTHON=$(BIN)/python tools/plug

test: .cache/packages-test $(VENV)/.made
	$(MAKE) --jobs=2 --output-sync check guest
	$(BIN)/pytest --numprocesses=$(or $(PROCESSES),2) --dist=loadgroup --durations=15

check: $(VENV)/.made
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases tests images
	for tool in $(PYTHON_TOOLS); do $(BIN)/mypy --scripts-are-modules $$tool || exit; done
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/test_tidy.py

unit: $(VENV)/.made
	$(BIN)/pytest -m "not root and not guest"

crash: .cache/packages-test $(VENV)/.made
	$(BIN)/python -m tests.crash --states $(or $(STATES),20000) --seed $(or $(SEED),1)

fuzz: $(VENV)/.made
	$(BIN)/python -m tests.fuzz --frames $(or $(FRAMES),1000000) --seed $(or $(SEED),1)

flood: .cache/packages-test $(VENV)/.made
	FLOOD_SECONDS=$(or $(SECONDS),60) $(BIN)/pytest -q -rA tests/interop/test_floods.py

bench: .cache/packages-bench $(VENV)/.made
	$(if $(PARTS),,$(BIN)/python tests/bench/run.py $(ROWS))
	$(if $(PARTS)$(ROWS),,$(BIN)/python -m tests.bench.stack)
	$(if $(ROWS),,$(BIN)/python -m tests.bench.image $(PARTS))

venv: $(VENV)/.made

guest: .cache/packages-test
	tools/guest-build

clean:
	rm -rf $(VENV) .cache .guest .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
	    .hypothesis tests/out images/demo.img *.egg-info

# Debian packages: one list for each verb, in tools/packages.
.cache/packages-%: tools/packages/%
	tools/install-packages tools/packages/$*
	mkdir -p .cache && touch $@

$(VENV)/.made: pyproject.toml | .cache/packages-python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
