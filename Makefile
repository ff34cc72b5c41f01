# Each target makes the virtual environment that it needs.
PYTHON ?= python3
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests must not reach a cluster by accident; `make test-cluster` names one.
unexport KUBECONFIG
# Tests start hundreds of processes, and each would compile every module that it imports.
unexport PYTHONDONTWRITEBYTECODE

DEV := .venv/installed
DEMO := .venv-demo/installed
COMPILED := .venv/compiled
LOCK := .venv-lock/installed
DIST := .venv-dist/installed
BIN := .venv/bin

IMAGE_REGISTRY ?= ghcr.io/sd-operator
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILDER ?= $(shell command -v docker || command -v buildah)
# For example: --build-arg BASE_IMAGE=... --build-arg TORCH_SPEC=... --secret id=pip,src=pip.conf
IMAGE_ARGS ?=
BUILD = $(BUILDER) build $(IMAGE_ARGS) --build-arg VERSION=$(VERSION) \
	--build-arg REVISION=$$(git rev-parse HEAD)

.PHONY: help demo test test-all test-cluster lint format bench bench-scale crd docs chart dist images lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(DEMO) ## Load two models end to end, without a cluster (KEEP=1: open a gallery of models)
	.venv-demo/bin/python -m tools.demo $(if $(KEEP),--keep)

# The workers keep all cores busy; more threads in torch would only wait for each other.
test test-all: export OMP_NUM_THREADS := 1

# A file's tests share a worker, and with it the models, namespaces and gateways made for them.
# tests/conftest.py orders the files.
PYTEST = $(BIN)/pytest --dist loadfile --no-loadscope-reorder
LINT = $(MAKE) --jobs=2 lint $(COMPILED)

# Cluster tests wait as much as they compute, so a third worker uses that time.
test: ## Lint, then run the tests (about 11 minutes on 2 cores)
	$(LINT)
	$(PYTEST) -n 3 -m "not slow and not gpu"

test-all: ## Lint, then run all tests, including the slow ones
	$(LINT)
	$(PYTEST) -n 2 --hypothesis-profile=many

# A Pod of a real node may have to pull images first.
test-cluster: $(DEV) ## Run the cluster tests against KUBECONFIG=... (see CONTRIBUTING.md)
	@test -n "$(KUBECONFIG)" || { echo "make test-cluster needs KUBECONFIG=<file>" >&2; exit 1; }
	KUBECONFIG=$(KUBECONFIG) $(BIN)/pytest -m cluster --timeout=900

lint: $(DEV) ## Check format, lint rules, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV) ## Format, and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV) ## Compare the loader with cp, the floor and diffusers (ONLY=..., ROUNDS=..., TINY=1)
	$(BIN)/python -m tools.bench --rounds $(or $(ROUNDS),5) --only "$(ONLY)" $(if $(TINY),--tiny)

bench-scale: $(DEV) ## Measure the operator with 1,000 models (MODELS=...)
	$(BIN)/python -m tools.bench_scale --models $(or $(MODELS),1000)

crd: $(DEV) ## Render the CRD, and what the charts take from it
	$(BIN)/python -m sd_api.crd > crds/stablediffusionmodels.yaml
	$(BIN)/python -m tools.make_chart

docs: $(DEV) ## Write the parts of docs/ that come from the code
	$(BIN)/python -m tools.make_docs
	$(BIN)/python -m tools.make_models_doc

chart: $(DEV) ## Package both charts into dist/
	$(BIN)/python -m tools.kubectl
	.cache/bin/helm lint --strict charts/*
	.cache/bin/helm package charts/* --destination dist

dist: $(DIST) ## Build the wheel of operator, gateway, plugin and loader into dist/
	rm -f dist/*.whl
	.venv-dist/bin/pip wheel --quiet --no-deps --wheel-dir dist .

images: ## Build the three images with docker or buildah (IMAGE_ARGS="...")
ifeq ($(BUILDER),)
	@echo "make images needs docker or buildah: install Docker Engine 23 or newer, or buildah" \
		"(on Debian: apt-get install buildah)" >&2; exit 1
else
	$(BUILD) --file operator/Dockerfile --tag $(IMAGE_REGISTRY)/operator:$(VERSION) .
	$(BUILD) --file loader-image/Dockerfile --target slim \
		--tag $(IMAGE_REGISTRY)/loader-slim:$(VERSION) .
	$(BUILD) --file loader-image/Dockerfile --target verify \
		--tag $(IMAGE_REGISTRY)/loader:$(VERSION) .
endif

lock: $(LOCK) ## Write the lock files of the images from pyproject.toml and constraints.txt
	.venv-lock/bin/python -m tools.lock_images

clean: ## Remove virtual environments and caches
	rm -rf .venv .venv-demo .venv-lock .venv-dist .cache

# Python compiles modules on import; compiling all of torch first would take half a minute.
$(DEV): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --editable ".[dev]"
	touch $@

# Each worker would compile all that it imports. One collection does it for all of them, while mypy
# uses the other core. A test file that cannot be imported is reported by the tests themselves.
$(COMPILED): $(DEV)
	@$(BIN)/pytest --collect-only -qq > /dev/null || true
	@touch $@

$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-demo
	@.venv-demo/bin/python -m tools.install --editable ".[standalone,gateway,loader]"
	@touch $@

$(LOCK): constraints.txt
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv
	touch $@

$(DIST):
	$(PYTHON) -m venv .venv-dist
	touch $@
