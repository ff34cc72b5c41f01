# Every target makes the virtual environment that it needs.
PYTHON ?= python3
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests must not find a cluster by accident: `make test-cluster` names one.
unexport KUBECONFIG

DEV := .venv/installed
DEMO := .venv-demo/installed
BIN := .venv/bin

.PHONY: help demo test test-all test-cluster lint format bench bench-scale crd clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(DEMO) ## Load two models end to end, without a cluster
	.venv-demo/bin/python tools/demo.py

test: lint ## Lint, then run the tests (under 10 minutes on 2 cores)
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

test-all: lint ## As test, with the slow matrices
	$(BIN)/pytest -n 2

test-cluster: $(DEV) ## Run the cluster tests against KUBECONFIG=...
	KUBECONFIG=$(KUBECONFIG) $(BIN)/pytest -m cluster

lint: $(DEV) ## Format check, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV) ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV) ## Measure the loader beside cp and diffusers (needs 30 GB of disk)
	$(BIN)/python tools/bench.py

bench-scale: $(DEV) ## Measure the operator with 1,000 models (MODELS=...)
	$(BIN)/python tools/bench_scale.py --models $(or $(MODELS),1000)

crd: $(DEV) ## Render the CRD from the contract's types
	$(BIN)/python -m sd_api.crd > crds/stablediffusionmodels.yaml

clean: ## Remove virtual environments and caches
	rm -rf .venv .venv-demo .cache

$(DEV): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --editable ".[standalone,loader]"
	touch $@
