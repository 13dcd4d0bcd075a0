PYTHON ?= python3
BIN = .venv/bin
STAMP = .venv/.installed

.PHONY: demo test slow studies lint clean

demo: $(STAMP)
	$(BIN)/fisherscope demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow"

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Which Fisher to choose: rewrites benchmarks/results/estimators.json and docs/fisher.md.
studies: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/estimators.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# One environment serves all targets; the stamp makes a finished install free.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt -e '.[test,lint]'
	touch $@

clean:
	rm -rf .venv
