# Two commands do everything, the environment included:
#   make report   the notebooks, run on DATASET (default: the embedded data set), as HTML under reports/
#   make test     the tests
# make lint checks style and types; make coverage runs the tests and says which lines none of them reaches.
# make test-oldest runs those of kernels, models, accelerate, data, logs and training on the oldest torch that is supported.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
# the oldest that there is and runs
PYTHON_OLDEST ?= $(shell python3.10 -c "import sys; print(sys.executable)" 2>/dev/null || echo $(PYTHON))
PY := .venv/bin/python
DATASET ?= embedded
DEVICE ?= auto
# features of a data set on disk, and anything else `python -m mmrec_helpers report --help` lists
VISUAL ?=
TEXTUAL ?=
ARGS ?=
# of test-oldest: the lower bounds of pyproject.toml (of torch and torch-geometric the last releases of their series), and
# the tests that need no notebook packages
OLDEST := torch==2.4.1 torch-geometric==2.6.1 numpy==1.26.4 scipy==1.13.1 pandas==2.2.2 numba==0.60.0 llvmlite==0.43.0 psutil==6.0.0
OLDEST_TESTS := $(wildcard tests/test_ops_*.py tests/test_models*.py tests/test_accelerate*.py tests/test_data_*.py) \
	$(wildcard $(patsubst %,tests/test_%.py,content_variants item_graph user_graph graph synthetic log_reader training training_models sampling metrics dead_work_ways dead_work_generated \
	checkpoint graphed_step study steps same_curve dead_work structure regions memory timing cli_train))

.PHONY: report test test-oldest coverage lint lab figure clean

report: .venv/.installed
	@$(PY) -m mmrec_helpers report --dataset "$(DATASET)" --device "$(DEVICE)" \
		$(if $(VISUAL),--visual "$(VISUAL)") $(if $(TEXTUAL),--textual "$(TEXTUAL)") $(ARGS)

test: .venv/.installed
	@$(PY) -m pytest -q $(ARGS)

test-oldest: .venv-oldest/.installed  # a GB or three of downloads the first time
	@.venv-oldest/bin/python -m pytest -q -p no:cacheprovider $(OLDEST_TESTS) $(ARGS)

coverage: .venv/.installed  # an empty cache, so that what generates the compiled kernels runs, too
	@NUMBA_CACHE_DIR=$$(mktemp -d) $(PY) -m pytest -q $(ARGS) --cov

lint: .venv/.installed
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

lab: .venv/.installed
	@.venv/bin/jupyter lab --notebook-dir=notebooks

figure: .venv/.installed  # the README's, from reports/measured and reports/tiktok-cpu
	@$(PY) -m mmrec_helpers.pages.readme_figure

clean:
	rm -rf .venv .venv-oldest

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else "mmrec_helpers needs Python 3.10 to 3.12, but $(PYTHON) is %d.%d: name another with make PYTHON=..." % v)'
	@echo "Installing into .venv (once, some two minutes) ..."
	@$(PYTHON) -m venv .venv
	@# constraints.txt is of Python 3.11 and 3.12: much of it has no release for 3.10, which gets the newest that there is
	@if $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; \
	then .venv/bin/pip install -qq --disable-pip-version-check --no-compile -c constraints.txt -e ".[test]"; \
	else .venv/bin/pip install -qq --disable-pip-version-check --no-compile -e ".[test]"; fi
	@$(PY) -m compileall -q -j 0 "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null 2>&1 || true
	@touch $@

.venv-oldest/.installed: pyproject.toml
	@echo "Installing torch 2.4 into .venv-oldest (once: some 3 GB of downloads where torch comes with CUDA) ..."
	@$(PYTHON_OLDEST) -m venv .venv-oldest
	@.venv-oldest/bin/pip install -q --disable-pip-version-check --no-compile $(OLDEST) -e . "pytest>=8" "hypothesis>=6.100" "pyyaml>=6"
	@touch $@
