"""The figures of docs/scale.md: shapes, one measurement, the page."""
