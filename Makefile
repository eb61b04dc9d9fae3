# make install   the environment in .venv, from the lock file
# make demo      the whole loop on a small set, with a real Label Studio; ARGS="--offline", ARGS="--exit", ...
# make check     format, lint, types, import contracts, fast tests
# make test      everything, real Label Studio, real PostgreSQL and a browser included; ARGS="-n 0" for one process, ARGS="-k word", ...
# make chaos     rounds killed at 100 points, servers restarted under them; ARGS="--kills 20", ARGS="--takeover 20", ...
# make soak      rounds back to back for 20 minutes: memory and handles; ARGS="--minutes 60"
# make hostile   2,000 broken and hostile files through everything that takes files (docs/reliability.md)
# make sbom      the packages it is made of, in sbom.json; make audit compares them with known weaknesses (SECURITY.md)
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

.PHONY: install demo check test test-gpu hostile sbom audit chaos soak lint types contracts format clean

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

chaos: install
	@$(BIN)/python scripts/chaos.py $(ARGS)

soak: install
	@$(BIN)/python scripts/soak.py $(ARGS)

# Broken and hostile files; figures as JSON. ARGS="--files 200", ...
hostile: install
	@$(BIN)/python scripts/bench_hostile.py $(ARGS)

# Every package of the lock file, extras included, without those for developing: CycloneDX 1.5 in sbom.json.
sbom: install
	@$(UV) export --frozen --quiet --format cyclonedx1.5 --no-dev --all-extras --output-file sbom.json
	@echo "sbom.json: $$(grep -c '"bom-ref"' sbom.json) components"

# Known weaknesses of the locked packages. ADVISORIES names a folder or zip of OSV advisories where there is no network.
audit: install
ifdef ADVISORIES
	@$(BIN)/python scripts/audit_offline.py "$(ADVISORIES)"
else
	@mkdir -p .cache; $(UV) export --frozen --quiet --all-extras --no-emit-project --output-file .cache/requirements.txt
	@$(BIN)/pip-audit --disable-pip --require-hashes -r .cache/requirements.txt
endif

clean:
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis activeseg-demo
