# Three commands for a newcomer: `make demo`, `make observe`, `make test`. All run in .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# cpu or gpu: onnxruntime or onnxruntime-gpu, never both.
RUNTIME ?= cpu
OTHER_RUNTIME := $(if $(filter gpu,$(RUNTIME)),onnxruntime,onnxruntime-gpu)
# Where torch comes from, when not from pip's ordinary index; README says what to set.
TORCH_INDEX_URL ?=
# Its builds for Linux report what they run, where they are not told.
export ORT_DISABLE_TELEMETRY ?= 1
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
# Clients of other servers that must work with ours, each in its own environment.
CLIENTS ?= tritonclient kserve reflection perf_analyzer
INTEROP := .venv-interop
# What the page and the REST API are tested with, each in its own environment, and its tests.
WEB ?= playwright schemathesis
WEB_VENVS := .venv-web
WEB_TESTS_playwright := tests/web/test_page.py tests/web/test_accuracy.py
WEB_TESTS_schemathesis := tests/web/test_openapi.py
# Playwright is imported by the tests themselves: nothing in it is also in ours.
PLAYWRIGHT = $$(echo $(CURDIR)/$(WEB_VENVS)/playwright/lib/python*/site-packages)
# What checks Dockerfiles, manifests and the compose file.
DEPLOY := .venv-deploy

# TorchServe's environment; also needs Java 17 (Debian: openjdk-17-jre-headless).
TORCHSERVE_VENV := .venv-torchserve
# What is packed: all models of the repository, or these, with commas between.
MODELS ?=
MODEL_REPOSITORY ?= models
TORCHSERVE_ARGUMENTS = --model-repository $(MODEL_REPOSITORY) $(if $(MODELS),--models $(MODELS))

# The tests of servers that `make test` runs over grpcio alone; `make lane-python` runs them over the
# lane. The others take each transport in turn, or name one; test_architecture.py misses none.
LANE_TESTS ?= $(patsubst %,tests/test_%.py,access admin async_client client client_commands \
  client_images control digits_service drift_serving feedback_workers healthcheck http_serving load \
  load_metrics logs parity probe prometheus protocol server tracing workers)
# And those that are run over a module with AddressSanitizer in it, by `make lane-asan-python`: of tests
# that take each transport, that of the lane.
LANE_ASAN_TESTS ?= $(patsubst %,tests/test_%.py,native_batcher batcher transports reload protocol \
  overload tls tls_renewal lane_connections lane_metrics sampling)
# For each fuzzer.
SECONDS_EACH ?= 20
LANE_SOURCES := $(wildcard serving/lane/CMakeLists.txt serving/lane/build.py serving/lane/core/* serving/lane/binding/*)
# Sanitizers and fuzzers are clang's (Debian: apt-get install clang doctest-dev). What is built for
# AddressSanitizer is built once, for the tests, the module and the fuzzers.
LANE_CLANG = cmake -S serving/lane -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLANE_TESTS=ON
LANE_ASAN = $(LANE_CLANG) -B build/lane-asan -DLANE_FUZZ=ON -DLANE_SANITIZE=address,undefined
LANE_FUZZERS := $(patsubst tests/lane/fuzz_%.cpp,%,$(wildcard tests/lane/fuzz_*.cpp))
LANE_JOBS := $(shell nproc)

BANDIT_PATHS := $(wildcard *.py) training serving benchmarks deploy
# What tests must not do either: exec, eval, unsafe YAML, mktemp, shells. They may assert, and pickle.
BANDIT_TESTS := B102,B306,B307,B506,B602,B604,B605,B609

# How an image is built: TAG CONTEXT OPTION... are added to this.
BUILD_IMAGE ?= docker build --tag
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# Of the images that are tested and looked into.
export IMAGE_TAG ?= $(VERSION)
SBOM := build/sbom
LOCKED := build/locked
IMAGE_ARGUMENTS = --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD)

.PHONY: demo observe test lane lane-test lane-asan lane-tsan lane-python lane-asan-python lane-fuzz interop web-test web-models page-picture reliability chaos fuzz images image-test sbom sbom-environment licences lock locked deploy-lint torchserve torchserve-archive parity torchserve-image compose-test kubernetes-test lint format proto constraints clean

demo: $(VENV)/.$(RUNTIME) $(VENV)/.lane
	@$(BIN)/python -m deploy.demo $(if $(ONCE),--once)

# Needs Prometheus on the PATH (Debian: apt-get install prometheus).
observe: $(VENV)/.$(RUNTIME) $(VENV)/.lane
	@$(BIN)/python -m deploy.observe $(if $(ONCE),--once)

test: $(VENV)/.$(RUNTIME)-dev $(VENV)/.lane
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/interop --ignore=tests/web --ignore=tests/reliability \
	  --ignore=tests/deployment

# Overload, a soak and faults under load, in their short forms: five minutes. The long ones are
# benchmarks/overload, benchmarks/soak and `make chaos`. One file at a time: they measure.
reliability: $(VENV)/.$(RUNTIME)-dev $(VENV)/.lane
	$(BIN)/python -m pytest -n 0 tests/reliability

# The native lane, for this interpreter: fails where something that it needs is missing, and says what.
# Here a warning is an error; where it is built by the way it is not, for the sake of compilers that
# are newer than ours. Each has a directory, as the other would compile everything again.
lane: $(VENV)/.$(RUNTIME)
	@$(BIN)/python -m serving.lane.build --warnings-are-errors --build-dir build/lane-strict
	@touch $(VENV)/.lane

# Its core without Python, under the sanitizers; then what needs Python, over the native transport.
lane-test: lane-asan lane-tsan lane-asan-python lane-python

lane-asan:
	@$(LANE_ASAN) -DLANE_BINDING=OFF >/dev/null
	@cmake --build build/lane-asan --target lane_tests --parallel $(LANE_JOBS) >/dev/null
	build/lane-asan/lane_tests

lane-tsan:
	@$(LANE_CLANG) -B build/lane-tsan -DLANE_BINDING=OFF -DLANE_SANITIZE=thread >/dev/null
	@cmake --build build/lane-tsan --target lane_tests --parallel $(LANE_JOBS) >/dev/null
	build/lane-tsan/lane_tests

lane-python: $(VENV)/.$(RUNTIME)-dev lane
	DIGITS_TRANSPORT=native $(BIN)/python -m pytest -n 2 --dist loadfile $(LANE_TESTS)

# Python has no sanitizer, so that the sanitizer's library must be in the process before it; and it
# frees little as it ends, so that leaks are not looked for. Servers that tests start have it too.
lane-asan-python: $(VENV)/.$(RUNTIME)-dev
	@$(LANE_ASAN) -DLANE_BINDING=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) >/dev/null
	@cmake --build build/lane-asan --target native --parallel $(LANE_JOBS) >/dev/null
	@rm -f build/lane-asan/report.*
	LD_PRELOAD="$$(clang++ -print-file-name=libclang_rt.asan-$$(uname -m).so) $$(clang++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:log_path=$(CURDIR)/build/lane-asan/report UBSAN_OPTIONS=print_stacktrace=1 \
	  PYTHONPATH=tests/lane/sanitized LANE_MODULE=$$(ls $(CURDIR)/build/lane-asan/native.*.so) DIGITS_TRANSPORT=native \
	  $(BIN)/python -m pytest -n 2 --maxfail=3 -k "not grpcio" $(LANE_ASAN_TESTS) && ! cat build/lane-asan/report.* 2>/dev/null || \
	  { cat build/lane-asan/report.* 2>/dev/null; exit 1; }

# What a fuzzer finds new stays in build/; a crash, a hang or too much memory fails.
lane-fuzz:
	@$(LANE_ASAN) -DLANE_BINDING=OFF >/dev/null
	@cmake --build build/lane-asan --target $(LANE_FUZZERS:%=fuzz_%) --parallel $(LANE_JOBS) >/dev/null
	@for each in $(LANE_FUZZERS); do \
	  mkdir -p build/lane-fuzz/$$each; log=build/lane-fuzz/$$each.log; \
	  build/lane-asan/fuzz_$$each build/lane-fuzz/$$each tests/lane/corpus/$$each tests/lane/corpus/$$each-found -max_total_time=$(SECONDS_EACH) \
	    -timeout=10 -rss_limit_mb=1024 -artifact_prefix=build/lane-fuzz/$$each- -print_final_stats=1 >$$log 2>&1 || \
	    { cat $$log; exit 1; }; \
	  sed -n "s/^stat::number_of_executed_units: */fuzz_$$each: executions: /p" $$log; done

# Faults under steady load, for five minutes: kills, restarts, swaps, a full disk (as root, who may
# mount one), clock jumps (Debian: libfaketime). The seed decides which come when.
SEED ?= 0
chaos: $(VENV)/.$(RUNTIME) $(VENV)/.lane
	$(BIN)/python -m benchmarks.chaos --seed $(SEED) $(if $(SECONDS_OF_CHAOS),--seconds $(SECONDS_OF_CHAOS))

# Bad input of every kind, as much as tests/reliability/FUZZING.md records, some twenty minutes; or of
# the targets that FUZZ names, COUNT cases each.
FUZZ ?=
fuzz: $(VENV)/.$(RUNTIME) $(VENV)/.lane
	$(BIN)/python -m benchmarks.fuzz $(FUZZ) --seed $(SEED) $(if $(COUNT),--count $(COUNT))

# Needs the package index for the clients; `make interop CLIENTS=reflection` for one of them. A client
# may have several files of tests: test_kserve.py, test_kserve_http.py.
interop: $(VENV)/.$(RUNTIME)-dev $(VENV)/.lane $(CLIENTS:%=$(INTEROP)/%/.done)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(CLIENTS:%=tests/interop/test_%*.py)

# The page in a real browser, and the REST API as its OpenAPI document has it. Needs the package
# index for what drives them, and Debian's chromium, or what CHROMIUM names; `make web-test
# WEB=playwright` for one of the two.
web-test: $(VENV)/.$(RUNTIME)-dev $(VENV)/.lane $(WEB:%=$(WEB_VENVS)/%/.done) $(if $(filter playwright,$(WEB)),web-models)
	MODEL_REPOSITORY=$(MODEL_REPOSITORY) $(BIN)/python -m pytest -n 2 --dist loadfile \
	  --override-ini "pythonpath=. $(PLAYWRIGHT)" $(foreach each,$(WEB),$(WEB_TESTS_$(each)))

# What the page is tested with; models that are not there are trained.
web-models: $(VENV)/.$(RUNTIME)
	@$(BIN)/python -m deploy.train --model-repository $(MODEL_REPOSITORY) --models=resnet18 --ten-digits=resnet18 --keep=good

# README's picture of the page, as somebody has drawn on it.
page-picture: $(VENV)/.$(RUNTIME)-dev $(VENV)/.lane $(WEB_VENVS)/playwright/.done
	@$(BIN)/python -m deploy.train --model-repository $(MODEL_REPOSITORY) --models=resnet18 --keep=good
	PYTHONPATH=tests:tests/web:$(PLAYWRIGHT) $(BIN)/python -m picture --model-repository $(MODEL_REPOSITORY) docs/page.png

# The published models in TorchServe, which is archived upstream: for those who have it.
torchserve-archive: $(TORCHSERVE_VENV)/.done
	$(TORCHSERVE_VENV)/bin/python -m deploy.torchserve.archive $(TORCHSERVE_ARGUMENTS)

torchserve: $(TORCHSERVE_VENV)/.done
	exec $(TORCHSERVE_VENV)/bin/python -m deploy.torchserve $(TORCHSERVE_ARGUMENTS)

# All runtimes answer the same images; models that are not there are trained.
parity: $(VENV)/.$(RUNTIME) $(TORCHSERVE_VENV)/.done
	$(BIN)/python -m deploy.train --model-repository $(MODEL_REPOSITORY) --ten-digits= --keep=good
	$(BIN)/python -m benchmarks.parity --model-repository $(MODEL_REPOSITORY) --torchserve $(TORCHSERVE_VENV)

images:
	$(BUILD_IMAGE) digits-serving:$(VERSION)$(if $(filter gpu,$(RUNTIME)),-gpu) . --file deploy/docker/serving.Dockerfile \
	  --build-arg RUNTIME=$(RUNTIME) $(IMAGE_ARGUMENTS)
	$(BUILD_IMAGE) digits-client:$(VERSION) . --file deploy/docker/serving.Dockerfile \
	  --target client $(IMAGE_ARGUMENTS)
	$(BUILD_IMAGE) digits-training:$(VERSION) . --file deploy/docker/training.Dockerfile \
	  --build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL) $(IMAGE_ARGUMENTS)
	$(if $(TORCHSERVE),$(MAKE) --no-print-directory torchserve-image)

# Large, and for those who want the second runtime: `make images TORCHSERVE=1` builds it, too.
torchserve-image:
	$(BUILD_IMAGE) digits-torchserve:$(VERSION) . --file deploy/docker/torchserve.Dockerfile \
	  --build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL) $(IMAGE_ARGUMENTS)

# What `make images` made, run as it would be by who trusts nobody. Needs docker.
image-test: $(VENV)/.$(RUNTIME)-dev sbom
	$(BIN)/python -m pytest tests/deployment/test_images.py

# What is in each image, as CycloneDX has it, in build/sbom/.
sbom: $(SBOM)/venv/.done
	@for name in serving client training; do $(SBOM)/venv/bin/python -m deploy.sbom \
	  digits-$$name:$(IMAGE_TAG) $(SBOM)/$$name.cdx.json || exit; done

# The same of this environment, without docker.
sbom-environment: $(SBOM)/venv/.done $(VENV)/.$(RUNTIME)
	@$(SBOM)/venv/bin/python -m cyclonedx_py environment --spec-version 1.6 --output-reproducible \
	  --pyproject pyproject.toml --output-file $(SBOM)/environment.cdx.json $(BIN)/python

# Of each package that is pinned; a licence that is not allowed fails, here and in `make lint`.
licences: $(VENV)/.$(RUNTIME)-dev
	$(BIN)/python -m deploy.licences

# The hashes of what the server and its client are made of, in deploy/locks/. Needs the package index.
lock: $(VENV)/bin/python
	$(BIN)/python -m deploy.lock

# The server's packages by those hashes and no others, in an environment of their own. Needs Python
# 3.11, as the images have it.
locked: $(VENV)/bin/python
	@rm -rf $(LOCKED)
	@$(PYTHON) -m venv $(LOCKED)
	$(LOCKED)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --only-binary :all: \
	  --requirement deploy/locks/serving.txt
	@$(LOCKED)/bin/python -m pip --disable-pip-version-check check

# The compose stack with those images. Needs Docker with Compose v2; MNIST_DIR, where it is set, is
# what it is trained on.
compose-test: $(VENV)/.$(RUNTIME)-dev
	$(BIN)/python -m pytest --capture=no tests/deployment/test_compose.py

# Needs the package index for the tools, and kubectl and rclone on the PATH.
deploy-lint: $(VENV)/.$(RUNTIME)-dev $(DEPLOY)/.done
	$(BIN)/python -m pytest tests/deployment/test_manifests.py tests/deployment/test_object_store.py

# Needs a cluster whose nodes have the images, and Prometheus's: the one that kubectl reaches, or the
# environment's KUBECTL, a command. Makes the namespace digits-test there, and deletes it.
kubernetes-test: $(VENV)/.$(RUNTIME)-dev
	$(BIN)/python -m pytest tests/deployment/test_kubernetes.py

lint: $(VENV)/.$(RUNTIME)-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy model_repository.py repository_upkeep.py repository_commands.py digit_image.py image_file.py training serving benchmarks deploy tests
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(BANDIT_PATHS)
	$(BIN)/bandit --quiet --tests $(BANDIT_TESTS) --recursive tests
	$(BIN)/python -m deploy.licences --check
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
	  $(PIP) freeze --exclude-editable | sed 's/+cpu$$//; s/^onnxruntime\(==.*\)/&\nonnxruntime-gpu\1/'; } \
	  >constraints.txt

clean:
	rm -rf $(VENV) $(INTEROP) $(WEB_VENVS) $(DEPLOY) $(TORCHSERVE_VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache serving/lane/*.so

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; set PYTHON=... to one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.$(RUNTIME): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) ..."
	$(if $(TORCH_INDEX_URL),@$(INSTALL) --index-url $(TORCH_INDEX_URL) torch)
	@rm -f $(addprefix $(VENV)/.,cpu gpu cpu-dev gpu-dev)  # what was there is no longer
	@$(PIP) uninstall --quiet --yes $(OTHER_RUNTIME) 2>/dev/null
	@$(INSTALL) --editable '.[training,serving,lane,$(RUNTIME)]'
	@touch $@

$(VENV)/.$(RUNTIME)-dev: $(VENV)/.$(RUNTIME)
	@$(INSTALL) --editable '.[dev,$(RUNTIME)]'
	@touch $@

# Where it cannot be built, that is said each time, in one line: until it can.
$(VENV)/.lane: $(VENV)/.$(RUNTIME) $(LANE_SOURCES) $(if $(wildcard serving/lane/native.*.so),,FORCE)
	@$(BIN)/python -m serving.lane.build --if-possible
	@touch $@

FORCE:

$(INTEROP)/%/.done: tests/interop/requirements-%.txt
	@echo "installing $* into $(@D) ..."
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement $<
	@touch $@

$(WEB_VENVS)/%/.done: tests/web/requirements-%.txt
	@echo "installing $* into $(@D) ..."
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement $<
	@touch $@

$(SBOM)/venv/.done: deploy/requirements-sbom.txt
	@echo "installing cyclonedx-bom into $(@D) ..."
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement $<
	@touch $@

$(DEPLOY)/.done: tests/deployment/requirements-lint.txt
	@echo "installing what checks deployments into $(DEPLOY) ..."
	@rm -rf $(DEPLOY)
	@$(PYTHON) -m venv $(DEPLOY)
	@$(DEPLOY)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement $<
	@touch $@

$(TORCHSERVE_VENV)/.done: deploy/torchserve/requirements.txt
	@echo "installing TorchServe into $(@D) ..."
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	$(if $(TORCH_INDEX_URL),@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --index-url $(TORCH_INDEX_URL) --constraint $< torch)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@
