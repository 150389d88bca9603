# Each command sets up what it needs; `make` alone lists them.
PYTHON ?= python3
DEST ?= demo
PROJECT = $(DEST)/my-lightning-project
BIN := $(if $(filter Windows_NT,$(OS)),Scripts,bin)

# Pins what every pip below installs, in the generated project's Makefile and in the tests too.
# As a URL, because pip splits this variable at spaces.
export PIP_CONSTRAINT := $(shell $(PYTHON) -c "import pathlib; print(pathlib.Path('constraints.txt').resolve().as_uri())" 2>/dev/null)

CHECK_PYTHON = @$(PYTHON) -c "import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else 'This needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)')"

.PHONY: help demo test test-slow lint format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# With the Python of here, whatever the project's .python-version says to pyenv.
demo: .venv-demo/.installed ## a project with the default answers, trained: DEST=demo is the folder
	@if test -e "$(PROJECT)"; then \
	  echo "$(PROJECT) is already there and stays as it is."; \
	else \
	  .venv-demo/$(BIN)/python -m cookiecutter . --no-input --default-config --output-dir "$(DEST)"; \
	fi
	@echo "Installing PyTorch and training; the first time takes minutes."
	@$(MAKE) --no-print-directory -C "$(PROJECT)" PYTHON="$$($(PYTHON) -c 'import sys; print(sys.executable)')" train
	@cd "$(PROJECT)" && run="$$PWD/$$(dirname "$$(ls -t runs/*/metrics.json | head -n 1)")" && \
	printf '%s\n' '' \
	  "The project is in $$PWD" \
	  "Its run is in     $$run" \
	  "How it learned:   $$run/curves.png" \
	  "What it mixes up: $$run/confusion.png"

test: .venv/.installed ## the tests; ARGS='-k answers' chooses some
	.venv/$(BIN)/python -m pytest $(ARGS)

test-slow: .venv/.installed ## all tests, the slow ones too
	.venv/$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

# --config, because ruff would else read the generated project's pyproject.toml, which holds Jinja.
lint: .venv/.installed ## style and format, changing nothing
	.venv/$(BIN)/ruff check --config pyproject.toml .
	.venv/$(BIN)/ruff format --config pyproject.toml --check .

format: .venv/.installed ## mend what can be mended by itself
	.venv/$(BIN)/ruff check --config pyproject.toml --fix .
	.venv/$(BIN)/ruff format --config pyproject.toml .

clean: ## what can be made again; demo/ stays
	rm -rf .venv .venv-demo .hypothesis .pytest_cache .ruff_cache

.venv-demo/.installed: constraints.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear .venv-demo
	.venv-demo/$(BIN)/python -m pip install --quiet cookiecutter
	@touch $@

# A new pip, because --group needs 25.1; torch alone, so that nothing else has a say in its version.
.venv/.installed: constraints.txt pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear .venv
	.venv/$(BIN)/python -m pip install --quiet --upgrade pip
	.venv/$(BIN)/python -m pip install --quiet torch
	.venv/$(BIN)/python -m pip install --quiet --group dev
	@touch $@
