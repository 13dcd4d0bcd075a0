"""The embedded real input: a small model and three tasks made from Python's own library."""

from fisherscope.demo.artifacts import DemoArtifacts
from fisherscope.demo.build import build

__all__ = ["DemoArtifacts", "build"]
