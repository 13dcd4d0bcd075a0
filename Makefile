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

# Which Fisher to choose, and does it hold up: rewrite benchmarks/results/{estimators,evidence,continual-*,
# brittleness,remedies,percolation}.json and what docs/{fisher,evidence,continual,brittleness,remedies,
# percolation}.md say of them.
studies: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/estimators.py
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/evidence.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/continual.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/brittleness.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/remedies.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/percolation.py

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
