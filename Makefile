# Two commands do everything: `make demo` and `make test`. All that they install goes into .venv beside this file.
# Only relative paths here, so that a folder with spaces in its name works.

PYTHON ?= python3
# Added to every pip install, for example: make demo PIP_ARGS="--extra-index-url URL"
PIP_ARGS ?=
WORKERS ?= 2
OUT ?= out/demo

PY := .venv/bin/python
# pip of $(PYTHON) installs into .venv: the distributions that split venv's own pip into another package work as well.
INSTALL = $(PYTHON) -m pip --python $(PY) install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt

.PHONY: demo test test-node test-nerfstudio viewer lint format ui example wheel clean help

help:
	@echo "make demo    set up .venv, then reconstruct the bundled photos into $(OUT)"
	@echo "make test    set up .venv, then run the tests"
	@echo "make test-node   the tests of splat formats against programs from npm"
	@echo "make test-nerfstudio   the plug-ins for nerfstudio, with nerfstudio in an environment of its own (2 GB)"
	@echo "make viewer  bundle the script of the viewer page anew, with what npm has of app/viewer/package.json"
	@echo "make lint    check the style;  make format  mend it"
	@echo "make ui      the page in the browser"
	@echo "make wheel   build dist/*.whl;  make example  take the bundled photos again;  make clean  remove .venv"

demo: .venv/core
	$(PY) -m app demo --out "$(OUT)" --overwrite

ui: .venv/core
	$(PY) -m app ui

# One thread a worker: many small tensors, and two busy thread pools on two cores only get in each other's way.
test: .venv/test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal

# Formats of splats against programs from npm, in build/node.
test-node: .venv/test build/viewer/installed
	npm install --prefix build/node --no-save --no-audit --no-fund --ignore-scripts @playcanvas/splat-transform@3.7.0 gltf-validator@2.0.0-dev.3.10
	OMP_NUM_THREADS=1 $(PY) -m pytest -m node tests/splat
	OMP_NUM_THREADS=1 $(PY) -m pytest -m node tests/app/test_viewer_bundle.py

# nerfstudio and what it needs, some of it older than what the rest has, in build/nerfstudio-venv.
NERFSTUDIO := build/nerfstudio-venv
test-nerfstudio: $(NERFSTUDIO)/installed
	OMP_NUM_THREADS=1 $(NERFSTUDIO)/bin/python -m pytest -m nerfstudio tests/app/test_nerfstudio.py

$(NERFSTUDIO)/installed: pyproject.toml constraints-nerfstudio.txt
	$(PYTHON) -m venv --without-pip $(NERFSTUDIO)
	$(PYTHON) -m pip --python $(NERFSTUDIO)/bin/python install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints-nerfstudio.txt --editable ".[nerfstudio]" pytest pytest-timeout
	@touch $(NERFSTUDIO)/installed

# The script in the pages of `export --to x.html`; committed, since who installs with pip need not have npm.
viewer: build/viewer/installed
	cp app/viewer/*.js build/viewer
	node build/viewer/build.js app/viewer/viewer.min.js

build/viewer/installed: app/viewer/package.json app/viewer/package-lock.json
	mkdir -p build/viewer
	cp app/viewer/*.json build/viewer
	npm ci --prefix build/viewer --no-audit --no-fund --ignore-scripts
	@touch build/viewer/installed

lint: .venv/dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: .venv/dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

example: .venv/core
	$(PY) assets/example/make_example.py

wheel: .venv/dev
	$(PYTHON) -m pip --python $(PY) wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf .venv build

# The files without contents under .venv say which parts are installed; an interrupted install leaves none.
.venv/created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}; run: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --without-pip .venv
	@touch .venv/created

.venv/core: .venv/created pyproject.toml setup.py constraints.txt
	@echo "Installing splatsmith and what it needs into .venv (a few minutes the first time)"
	$(INSTALL) --editable .
	@touch .venv/core

.venv/test: .venv/core
	$(INSTALL) --editable ".[test]"
	@touch .venv/test

.venv/dev: .venv/created pyproject.toml constraints.txt
	$(INSTALL) "ruff>=0.9"
	@touch .venv/dev
