"""``python -m fisherscope``: the command line, as ``torchrun -m fisherscope`` starts it."""

from fisherscope.cli import main

if __name__ == "__main__":
    main(prog_name="fisherscope")
