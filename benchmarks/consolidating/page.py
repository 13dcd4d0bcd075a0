"""Tables and plots of docs/continual.md."""


def write() -> None:
    """Nothing yet."""
