# make install   the environment in .venv, from the lock file
# make demo      the whole loop on a small set, with a real Label Studio; ARGS="--offline", ARGS="--exit", ...
# make check     format, lint, types, import contracts, fast tests
# make test      everything, real Label Studio, real PostgreSQL and a browser included; ARGS="-n 0" for one process, ARGS="-k word", ...
SHELL := /bin/sh
UV := $(shell command -v uv 2>/dev/null || echo .cache/uv/bin/uv)
BIN := .venv/bin
export ACTIVESEG_UV := $(abspath $(UV))
export UV_PROJECT_ENVIRONMENT := .venv
# Wheels of torch are large: the default of 30 s is too short on slow lines.
export UV_HTTP_TIMEOUT := 300
# Without its bytecode torch takes several times as long to import, and tests start many processes.
unexport PYTHONDONTWRITEBYTECODE
# One worker per core, four at most; a file goes to one of them as a whole. A worker that dies ends the run and names its test.
WORKERS := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: install demo check test test-gpu lint types contracts format clean

install: .venv/.stamp

.cache/uv/bin/uv:
	@echo "installing uv into .cache/uv (it is not on the PATH)"
	@python3 -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2])' || { echo "python3 is older than 3.9: install Python 3.11 to 3.13"; exit 1; }
	@python3 -m venv .cache/uv || { echo "python3 has no venv: apt-get install python3-venv, or install uv"; exit 1; }
	@.cache/uv/bin/python -m pip install -q --disable-pip-version-check 'uv>=0.13,<0.14'

.venv/.stamp: pyproject.toml uv.lock | $(if $(filter .cache/%,$(UV)),.cache/uv/bin/uv)
	@echo "installing activeseg and its dependencies into .venv (the first time about 6 GB)"
	@$(UV) sync --frozen
	@touch $@

demo: install
	@$(BIN)/activeseg demo $(ARGS)

format: install
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

lint: install
	@echo "lint: ruff"
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .

types: install
	@echo "types: mypy --strict"
	@$(BIN)/mypy --no-error-summary

contracts: install
	@echo "import contracts: import-linter"
	@mkdir -p .cache; $(BIN)/lint-imports > .cache/contracts.log 2>&1 || { cat .cache/contracts.log; exit 1; }

check: lint types contracts
	@$(BIN)/python -m pytest -q $(WORKERS) -m "not slow and not labelstudio and not postgres and not browser and not gpu" $(ARGS)

test: lint types contracts
	@$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-gpu: install
	@$(BIN)/python -m pytest -m gpu $(ARGS)
	@$(BIN)/activeseg demo --offline --state "$$(mktemp -d)/demo"

clean:
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis activeseg-demo
