"""Cut long texts into short passages; pure functions on text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

SHORTEST, LONGEST = 600, 900
# Shorter paragraphs ("Example:", "See also:") may stand in many places.
REPEATABLE = 40

Item = TypeVar("Item")


def pack(pieces: Sequence[str], separator: str) -> list[str]:
    """Join consecutive pieces to passages of 600 to 900 characters.

    A passage ends at the first blank piece once it is long enough, or before the piece
    that would make it too long. Shorter ones (before a piece that alone is too long,
    and at the end) are left out.

    Args:
        pieces: Lines or paragraphs in order.
        separator: What stands between two pieces.

    Returns:
        The passages in order.
    """
    passages: list[str] = []
    current: list[str] = []

    def close() -> None:
        text = separator.join(current).strip("\n")
        if len(text) >= SHORTEST:
            passages.append(text)
        current.clear()

    length = 0
    for piece in pieces:
        if length + len(piece) > LONGEST:
            close()
            length = 0
        if len(piece) <= LONGEST:
            current.append(piece)
            length += len(piece) + len(separator)
        if not piece.strip() and length > SHORTEST + 60:
            close()
            length = 0
    close()
    return passages


def without_repeats(texts: Iterable[str]) -> list[str]:
    """Drop every paragraph that stood in an earlier text or earlier in the same one.

    Args:
        texts: Texts with blank lines between paragraphs.

    Returns:
        One text for each given one, in order; maybe empty.
    """
    seen: set[str] = set()
    kept_texts = []
    for text in texts:
        kept = []
        for paragraph in text.split("\n\n"):
            # Indentation differs between a section and its quotation.
            key = " ".join(paragraph.split())
            if len(key) > REPEATABLE and key in seen:
                continue
            seen.add(key)
            kept.append(paragraph)
        joined = "\n\n".join(kept).strip("\n")
        kept_texts.append(joined if len(joined) > REPEATABLE else "")
    return kept_texts


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Pick at most ``count`` items, evenly spaced and in order.

    Args:
        items: What to pick from.
        count: How many at most.

    Returns:
        All items where there are no more than ``count``.
    """
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
