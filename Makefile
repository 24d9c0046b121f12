# Three commands for a newcomer: `make demo`, `make observe`, `make test`. All run in .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# cpu or gpu: onnxruntime or onnxruntime-gpu, never both.
RUNTIME ?= cpu
OTHER_RUNTIME := $(if $(filter gpu,$(RUNTIME)),onnxruntime,onnxruntime-gpu)
# Where torch comes from, when not from pip's ordinary index; README says what to set.
TORCH_INDEX_URL ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
# Clients of other servers that must work with ours, each in its own environment.
CLIENTS ?= tritonclient kserve reflection perf_analyzer
INTEROP := .venv-interop

# How an image is built: TAG CONTEXT OPTION... are added to this.
BUILD_IMAGE ?= docker build --tag
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE_ARGUMENTS = --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD)

.PHONY: demo observe test interop images lint format proto constraints clean

demo: $(VENV)/.$(RUNTIME)
	@$(BIN)/python -m deploy.demo $(if $(ONCE),--once)

# Needs Prometheus on the PATH (Debian: apt-get install prometheus).
observe: $(VENV)/.$(RUNTIME)
	@$(BIN)/python -m deploy.observe $(if $(ONCE),--once)

test: $(VENV)/.$(RUNTIME)-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/interop --ignore=tests/deployment

# Needs the package index for the clients; `make interop CLIENTS=reflection` for one of them.
interop: $(VENV)/.$(RUNTIME)-dev $(CLIENTS:%=$(INTEROP)/%/.done)
	$(BIN)/python -m pytest $(CLIENTS:%=tests/interop/test_%.py)

images:
	$(BUILD_IMAGE) digits-serving:$(VERSION) . --file deploy/docker/serving.Dockerfile \
	  --build-arg RUNTIME=$(RUNTIME) $(IMAGE_ARGUMENTS)
	$(BUILD_IMAGE) digits-client:$(VERSION) . --file deploy/docker/serving.Dockerfile \
	  --target client $(IMAGE_ARGUMENTS)
	$(BUILD_IMAGE) digits-training:$(VERSION) . --file deploy/docker/training.Dockerfile \
	  --build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL) $(IMAGE_ARGUMENTS)

lint: $(VENV)/.$(RUNTIME)-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy model_repository.py repository_upkeep.py repository_commands.py digit_image.py training serving benchmarks deploy tests
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory proto
	git diff --exit-code -- serving/pb

format: $(VENV)/.$(RUNTIME)-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The option maps proto/ to serving/pb, so that generated imports need no editing.
proto: $(VENV)/.$(RUNTIME)-dev
	PATH=$(abspath $(BIN)):$$PATH python -m grpc_tools.protoc -Iserving/pb=proto --python_out=. \
	  --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. serving/pb/inference.proto serving/pb/digits.proto

constraints: $(VENV)/.$(RUNTIME)-dev
	{ echo '# Every exact version that was tested together; `make constraints` writes it anew.'; \
	  $(PIP) freeze --exclude-editable | sed 's/+cpu$$//'; } >constraints.txt

clean:
	rm -rf $(VENV) $(INTEROP) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; set PYTHON=... to one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.$(RUNTIME): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) ..."
	$(if $(TORCH_INDEX_URL),@$(INSTALL) --index-url $(TORCH_INDEX_URL) torch)
	@rm -f $(addprefix $(VENV)/.,cpu gpu cpu-dev gpu-dev)  # what was there is no longer
	@$(PIP) uninstall --quiet --yes $(OTHER_RUNTIME) 2>/dev/null
	@$(INSTALL) --editable '.[training,serving,$(RUNTIME)]'
	@touch $@

$(VENV)/.$(RUNTIME)-dev: $(VENV)/.$(RUNTIME)
	@$(INSTALL) --editable '.[dev,$(RUNTIME)]'
	@touch $@

$(INTEROP)/%/.done: tests/interop/requirements-%.txt
	@echo "installing $* into $(@D) ..."
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement $<
	@touch $@
