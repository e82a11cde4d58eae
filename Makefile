# `make demo`, `make test` and `make docs` do all the set-up a fresh machine needs, in .venv.

PYTHON ?= python3
BIN := .venv/bin

# Stamps: what is installed is installed again only when its inputs change.
TORCH := .venv/torch-installed
CORE := .venv/core-installed
DEV := .venv/dev-installed
DOCS := .venv/docs-installed

.PHONY: demo test test-slow docs lint record train rooms evaluate clean

demo: $(CORE)
	$(BIN)/mosaic-gym demo --out out/demo

test: $(DEV)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# What takes long: whole commands, several processes, training until a loss falls.
test-slow: $(DEV)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

# The site, in site/. Every warning is an error: a broken link, or a name in the API pages that does not exist.
# (The variable turns off the theme's advice about the next version of MkDocs.)
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

record: $(CORE)
	$(BIN)/mosaic-gym record

train: $(DEV)
	$(BIN)/mosaic-gym train codec
	$(BIN)/mosaic-gym train depth
	$(BIN)/mosaic-gym train reward-heads
	$(BIN)/mosaic-gym train atlas
	$(BIN)/mosaic-gym train world

# The generative world of generated maps, from nothing. Each command continues where it was stopped.
rooms: $(DEV)
	$(BIN)/mosaic-gym record --scenario rooms --split train --maps 2000
	$(BIN)/mosaic-gym record --scenario rooms --split heldout --maps 100
	$(BIN)/mosaic-gym train rgbd-codec
	$(BIN)/mosaic-gym train depth --data data/rooms --out runs/rooms-depth --episodes 300 --minutes 7
	$(BIN)/mosaic-gym train reward-heads --data data/rooms --previous --out runs/rooms-reward-heads --minutes 6
	$(BIN)/mosaic-gym train generator --reward-heads runs/rooms-reward-heads/weights

evaluate: $(CORE)
	$(BIN)/mosaic-gym evaluate atlas
	$(BIN)/mosaic-gym evaluate collision
	$(BIN)/mosaic-gym evaluate depth
	$(BIN)/mosaic-gym evaluate speed
	$(BIN)/mosaic-gym evaluate revisit

# Recordings (data/), runs (runs/) and pictures (out/) are yours to delete.
clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache

# Torch goes first and alone, so that no later requirement can pull in another build of it.
$(TORCH): constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt torch==2.13.0
	@touch $@

$(CORE): $(TORCH) pyproject.toml
	$(BIN)/pip install -c constraints.txt -e .
	@touch $@

$(DEV): $(CORE)
	$(BIN)/pip install -c constraints.txt -e .[dev]
	@touch $@

$(DOCS): $(CORE)
	$(BIN)/pip install -c constraints.txt -e .[docs]
	@touch $@
