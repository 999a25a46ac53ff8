# Start with `make demo`. Every command that needs .venv installs it first, once. `make help` lists the commands.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c '' 2>/dev/null && echo $$p && exit; done; echo python3.11)
VENV := .venv
LOCK := requirements.lock
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed-$(shell cat $(LOCK) pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: demo test test-stacks test-cluster install install-stacks install-cluster lab mlflow serve notebooks hooks lint clean help

help:        ## print this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed 's/:.*##/ -/'

demo: install ## run the six notebooks: train a small model on two CPU workers, score, merge and export it (4 minutes)
	@$(PY) -m kto run --profile local

# A file's tests stay on one worker (their fixtures are the file's), and the longest files come first: tests/conftest.py lists them.
test: install ## run the tests (tests/unit on two workers), then execute the six notebooks (nbval)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/unit
	@$(PY) -m pytest tests/browser tests/stacks
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && export KTO_STORAGE="$$scratch/storage" KTO_LIVE=off OMP_WAIT_POLICY=PASSIVE && \
	  $(PY) -m pytest --nbval-lax --nbval-cell-timeout=900 --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks

# Each stack gets its own environment (7 GB with torch's CUDA build). One stack only: make test-stacks STACKS=newest
STACKS := image newest
test-stacks: install-stacks ## test training, a killed worker, resume, checkpoints and curves on the other locks (Python 3.12; 7 minutes each)
	@set -e; for stack in $(STACKS); do .venv-$$stack/bin/python -m pytest tests/stacks tests/unit/test_resume_exactly.py; done

install-stacks:
	@set -e; python=$$(for p in $${PYTHON_312:-} python3.12 $$HOME/.pyenv/versions/3.12*/bin/python; do \
	    $$p -c '' 2>/dev/null && echo $$p && break; done); \
	  test -n "$$python" || { echo 'error: no python3.12 found; fix: install it, or: PYTHON_312=/path make test-stacks' >&2; exit 1; }; \
	  for stack in $(STACKS); do \
	    $(MAKE) --no-print-directory install PYTHON=$$python VENV=.venv-$$stack LOCK=locks/$$stack.lock; \
	  done

test-cluster: install ## test several Ray nodes, jobs, kills, resumes, planted secrets (10 minutes; needs root to isolate the nodes)
	@$(PY) -m pytest tests/cluster

install: $(STAMP) ## install the locked stack into .venv (4 minutes, once)

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c '' 2>/dev/null || { printf 'error: no $(PYTHON) found\n  expected: Python 3.11 or 3.12\n  fix: install it, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11\n' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"error: {sys.executable} is Python {v[0]}.{v[1]}\n  expected: 3.11 or 3.12, which the stack is locked for\n  fix: install one, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11")'
	@echo 'Installing $(LOCK) into $(VENV) (about 4 minutes, once) ...' >&2
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) tools/install.py $(LOCK)
	@rm -f $(VENV)/.installed-* && touch $@

# A cluster image's torch and ray fit its drivers and nodes: they stay, and so does what is built against them.
install-cluster: ## on a cluster image: install all but torch and ray, which stay (LOSE=vllm lets the image's vllm break)
	@$(PYTHON) tools/install_cluster.py $(addprefix --lose ,$(LOSE))

lab: install ## open JupyterLab on the first notebook (this machine only)
	@$(VENV)/bin/jupyter lab --ip=127.0.0.1 notebooks/01_setup.ipynb

mlflow: install ## start an MLflow server for the runs of the local storage (this machine only; PORT=5000)
	@$(PY) tools/free_port.py $${PORT:-5000}
	@$(VENV)/bin/mlflow server --host 127.0.0.1 --port $${PORT:-5000} --workers 1 --backend-store-uri sqlite:///$${KTO_STORAGE:-$(CURDIR)/storage}/mlflow.db

serve: install ## start an OpenAI-compatible server: the newest export's base and all adapters that fit it (this machine only; PORT=8000)
	@$(PY) -m kto serve --port $${PORT:-8000}

notebooks: install ## run the six notebooks and save their outputs in notebooks/
	@$(PY) tools/regenerate_notebooks.py

hooks: install ## check every commit before it is made: ruff, notebook outputs, secrets
	@$(VENV)/bin/pre-commit install

lint: install ## run ruff on everything
	@$(VENV)/bin/ruff check .

clean:       ## remove the environment; runs in storage/ stay
	rm -rf .venv .venv-image .venv-newest build
