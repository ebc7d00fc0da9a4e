# Two commands do everything, the environment included:
#   make report   the notebooks, run on DATASET (default: the embedded data set), as HTML under reports/
#   make test     the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PY := .venv/bin/python
DATASET ?= embedded
DEVICE ?= auto
# features of a data set on disk, and anything else `python -m mmrec_helpers report --help` lists
VISUAL ?=
TEXTUAL ?=
ARGS ?=

.PHONY: report test lint lab bench figure clean

report: .venv/.installed
	@$(PY) -m mmrec_helpers report --dataset "$(DATASET)" --device "$(DEVICE)" \
		$(if $(VISUAL),--visual "$(VISUAL)") $(if $(TEXTUAL),--textual "$(TEXTUAL)") $(ARGS)

test: .venv/.installed
	@$(PY) -m pytest -q $(ARGS)

lint: .venv/.installed
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

lab: .venv/.installed
	@.venv/bin/jupyter lab --notebook-dir=notebooks

bench: .venv/.installed
	@$(PY) -m mmrec_helpers bench $(ARGS)

figure: .venv/.installed  # the README's, from reports/anatomy
	@$(PY) -m mmrec_helpers.pages.readme_figure

clean:
	rm -rf .venv

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "mmrec_helpers needs Python 3.11 or 3.12, but $(PYTHON) is %d.%d: name another with make PYTHON=..." % v)'
	@echo "Installing into .venv (once, some two minutes) ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install -qq --disable-pip-version-check --no-compile -c constraints.txt -e ".[test]"
	@$(PY) -m compileall -q -j 0 "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null 2>&1 || true
	@touch $@
