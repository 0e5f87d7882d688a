# Orderly's daily commands. `make help` lists them: it is made from the comments after `##`.

PYTHON ?= python3
RUN = .venv/bin/python
PYTEST = $(RUN) -m pytest

.PHONY: help demo serve test test-slow lint format requirements environment environment-dev peers clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-14s %s\n' "$$name" "$$text"; done

demo: environment ## everything at once: installs, starts, plays a hospital morning, shows a board; Ctrl-C ends it
	@$(RUN) manage.py demo $(ARGS)

serve: environment ## the engine alone, on the default ports
	@$(RUN) manage.py serve $(ARGS)

test: environment-dev peers ## the tests, on a database cluster of their own (ARGS="-k name" chooses)
	$(PYTEST) -n 2 --dist loadfile -m "not slow" $(ARGS)

test-slow: environment-dev peers ## the tests that take long: kills by the hundred, large tables, browsers of every page
	$(PYTEST) -m slow $(ARGS)

lint: environment-dev ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: environment-dev ## lay the code out as lint wants it
	$(RUN) -m ruff check --fix-only -q .
	$(RUN) -m ruff format -q .

requirements: environment-dev ## pin requirements/*.in anew
	$(RUN) -m pip install -q uv
	for set in base dev; do \
		$(RUN) -m uv pip compile --universal --python-version 3.11 --no-header --no-emit-index-url -q \
			requirements/$$set.in -o requirements/$$set.txt; done

environment:
	@$(PYTHON) config/bootstrap.py base

environment-dev:
	@$(PYTHON) config/bootstrap.py dev

peers: environment-dev
	@$(RUN) -m tests.peer_programs

clean: ## take away what tools left behind (never the data in var/)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
