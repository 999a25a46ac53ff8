# Two commands do everything: `make demo` and `make test`. Both set up .venv first; the second time nothing is installed.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c '' 2>/dev/null && echo $$p && exit; done; echo python3.11)
VENV := .venv
LOCK := requirements.lock
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed-$(shell cat $(LOCK) pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: demo test test-stacks test-cluster install install-cluster lab mlflow serve notebooks hooks lint clean help

help:        ## this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed 's/:.*##/ -/'

demo: install ## train a real model on two CPU workers: six executed notebooks, plots, checkpoints, a merged model (4 minutes)
	@$(PY) -m kto run --profile local

test: install ## unit tests, then the six notebooks for real (nbval)
	@$(PY) -m pytest tests/unit tests/browser tests/stacks
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && export KTO_STORAGE="$$scratch/storage" KTO_LIVE=off OMP_WAIT_POLICY=PASSIVE && \
	  $(PY) -m pytest --nbval-lax --nbval-cell-timeout=900 --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks

# Each in an environment of its own (7 GB with torch's CUDA build): make test-stacks STACKS=newest
STACKS := image newest
test-stacks: ## two-worker training, killed worker, resume, checkpoints, curves on the other locks (Python 3.12; 7 minutes each)
	@set -e; python=$$(for p in $${PYTHON_312:-} python3.12 $$HOME/.pyenv/versions/3.12*/bin/python; do \
	    $$p -c '' 2>/dev/null && echo $$p && break; done); \
	  test -n "$$python" || { echo 'error: no python3.12 found; fix: install it, or: PYTHON_312=/path make test-stacks' >&2; exit 1; }; \
	  for stack in $(STACKS); do \
	    $(MAKE) --no-print-directory install PYTHON=$$python VENV=.venv-$$stack LOCK=locks/$$stack.lock; \
	    .venv-$$stack/bin/python -m pytest tests/stacks tests/unit/test_resume_exactly.py; \
	  done

test-cluster: install ## several Ray nodes, jobs, kills and their resumes, planted secrets (10 minutes; wants root for nodes of their own)
	@$(PY) -m pytest tests/cluster

install: $(STAMP) ## the locked stack in .venv (4 minutes, once)

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c '' 2>/dev/null || { printf 'error: no $(PYTHON) found\n  expected: Python 3.11 or 3.12\n  fix: install it, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11\n' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"error: {sys.executable} is Python {v[0]}.{v[1]}\n  expected: 3.11 or 3.12, which the stack is locked for\n  fix: install one, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11")'
	@echo 'Installing $(LOCK) into $(VENV) (about 4 minutes, once) ...' >&2
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) tools/install.py $(LOCK)
	@rm -f $(VENV)/.installed-* && touch $@

# A cluster image brings a torch and a ray that fit its drivers and its nodes: they, and what is built against them, stay.
install-cluster: ## on a cluster image: everything but torch and ray, which stay as the image has them (LOSE=vllm: it may break)
	@$(PYTHON) tools/install_cluster.py $(addprefix --lose ,$(LOSE))

lab: install ## JupyterLab on the first notebook, on this machine only
	@$(VENV)/bin/jupyter lab --ip=127.0.0.1 notebooks/01_setup.ipynb

mlflow: install ## an MLflow server on this machine only, over the local storage's runs (PORT=5000)
	@$(PY) tools/free_port.py $${PORT:-5000}
	@$(VENV)/bin/mlflow server --host 127.0.0.1 --port $${PORT:-5000} --workers 1 --backend-store-uri sqlite:///$${KTO_STORAGE:-$(CURDIR)/storage}/mlflow.db

serve: install ## an OpenAI-compatible server on this machine only: the newest run's base with every adapter that fits it (PORT=8000)
	@$(PY) -m kto serve --port $${PORT:-8000}

notebooks: install ## run the six notebooks for real and keep their outputs in notebooks/
	@$(PY) tools/regenerate_notebooks.py

hooks: install ## look at every commit before it is made: ruff, notebook outputs, secrets
	@$(VENV)/bin/pre-commit install

lint: install ## ruff over everything
	@$(VENV)/bin/ruff check .

clean:       ## remove the environment; runs in storage/ stay
	rm -rf .venv .venv-image .venv-newest build
