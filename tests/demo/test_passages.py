from fisherscope.demo.passages import LONGEST, SHORTEST, evenly, pack, without_repeats


def test_passages_are_consecutive_pieces_of_the_text_within_the_bounds():
    # Catches a length count without separators, and lines lost or swapped at a boundary.
    lines = [f"line {index} " + "x" * (index % 70) for index in range(300)]
    passages = pack(lines, "\n")
    assert len(passages) > 10
    assert all(SHORTEST <= len(passage) <= LONGEST for passage in passages)
    whole = "\n".join(lines)
    assert all(passage in whole for passage in passages)
    joined = "\n".join(passages)
    assert joined == whole[: len(joined)]


def test_a_piece_that_is_too_long_ends_the_passage_and_is_left_out():
    # Catches passages that run on over a gap: text that stands nowhere.
    lines = ["a" * 80] * 9 + ["y" * (LONGEST + 1)] + ["b" * 80] * 9
    assert pack(lines, "\n") == ["\n".join(lines[:9]), "\n".join(lines[10:])]


def test_long_passages_end_at_a_blank_line():
    # Catches a pack that cuts functions at random although a blank line is near.
    lines = (["x" * 79] * 9 + [""]) * 3
    assert pack(lines, "\n") == ["\n".join(["x" * 79] * 9)] * 3


def test_text_that_is_too_short_gives_no_passage():
    # Catches a remainder that is kept: rows of a few characters.
    assert pack(["short"], "\n") == []
    assert pack([], "\n") == []


def test_repeated_paragraphs_are_dropped_whatever_their_indentation():
    # Catches comparing raw text: quotations in the help topics are indented anew.
    long = "The with statement wraps the execution of a block\nwith methods."
    quoted = "   " + long.replace("\n", "\n   ")
    other = "Something that is said only here, and nowhere else at all."
    assert without_repeats([long, f"{quoted}\n\n{other}"]) == [long, other]


def test_short_headings_may_repeat():
    # Catches dropping "Example:" everywhere but in the first topic.
    body = "This text is long enough to be worth keeping, and it is number"
    first, second = (f"Example:\n\n{body} {index}." for index in (1, 2))
    assert without_repeats([first, second]) == [first, second]


def test_evenly_keeps_order_and_reaches_over_the_whole():
    # Catches taking the first rows: one module would fill the task.
    picked = evenly(range(1000), 10)
    assert picked == sorted(set(picked)) and len(picked) == 10
    assert picked[0] == 0 and picked[-1] >= 900
    assert evenly("abc", 10) == ["a", "b", "c"]
