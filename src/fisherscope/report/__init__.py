"""Results to figures to one self-contained HTML file, and to a table for the terminal."""

from fisherscope.report.page import render, summary, write_report

__all__ = ["render", "summary", "write_report"]
