# Each target does all the set-up it needs in $(VENV), once: the stamp files there depend on pyproject.toml only.
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= quickstart-output
JOBS ?= 2
RACES ?= start_up mae_step contrastive_losses two_view_augmentation densecl_views simclr_step densecl_step sanm_masking sanm_epoch positional_label_heads positional_label_step

BIN := $(VENV)/bin
CREATED := $(VENV)/.created
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
BENCH := $(VENV)/.bench-installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help quickstart test test-slow bench lint clean distclean

help:
	@echo "make quickstart   install, then fine-tune, compare, draw, publish and load back a small model"
	@echo "make test         install, then run the fast tests"
	@echo "make test-slow    install, then run the tests that need minutes"
	@echo "make bench        install, then race against peers and write benchmarks/results.md"
	@echo "make lint         install, then check formatting, lint and types"
	@echo "make clean        remove caches and build products (make distclean: the environment too)"

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"hubmodels needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# $(call install,REQUIREMENT): every extra contains the runtime packages, so its stamp counts for $(RUNTIME) too.
define install
	@echo "installing $(1) into $(VENV): some minutes, once"
	@start=$$(date +%s); $(BIN)/python -m pip install --quiet -e "$(1)" && echo "installed in $$(( $$(date +%s) - start )) s"
	@touch $(RUNTIME) $@
endef

$(RUNTIME): pyproject.toml | $(CREATED)
	$(call install,.)

$(DEV): pyproject.toml | $(CREATED)
	$(call install,.[dev])

$(BENCH): pyproject.toml | $(CREATED)
	$(call install,.[bench])

quickstart: $(RUNTIME)
	@output=$(OUTPUT); number=2; while [ -e "$$output" ]; do output=$(OUTPUT)-$$number; number=$$((number + 1)); done; \
	start=$$(date +%s); $(BIN)/hubmodels quickstart --output "$$output" \
	&& echo "quickstart took $$(( $$(date +%s) - start )) s"

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

test-slow: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

bench: $(BENCH)
	@for race in $(RACES); do $(BIN)/python -m benchmarks.$$race || exit 1; done

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean
	rm -rf .venv
