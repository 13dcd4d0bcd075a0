import math

import pytest

from fisherscope.errors import IdentityError, StoreError
from fisherscope.studies.kept import Kept


def test_rows_come_back_and_a_cut_line_is_dropped(tmp_path):
    # Catches a half-written last line that is read or that the next row is glued to.
    file = tmp_path / "deep" / "rows.jsonl"
    kept = Kept(file, "a", dict)
    kept.add({"x": 0.1})
    kept.add({"x": 1 / 3})
    with file.open("a") as stream:
        stream.write('{"x": 0.')
    again = Kept(file, "a", dict)
    assert again.rows == [{"x": 0.1}, {"x": 1 / 3}]
    again.add({"x": 2})
    assert Kept(file, "a", dict).rows[-1] == {"x": 2}


def test_others_measurements_are_refused(tmp_path):
    # Catches numbers of another model that are taken for this one's.
    file = tmp_path / "rows.jsonl"
    Kept(file, "a", dict)
    with pytest.raises(IdentityError, match="another model"):
        Kept(file, "b", dict)
    file.write_text("{not json\n")
    with pytest.raises(StoreError, match="rows.jsonl"):
        Kept(file, "a", dict)


def test_nothing_is_kept_without_a_file():
    kept = Kept(None, "a", dict)
    kept.add({"x": 1})
    assert kept.rows == []


def test_a_result_is_computed_once_per_key(tmp_path):
    # Catches a result that is made again, given for another key, or read back otherwise.
    file, made = tmp_path / "found.jsonl", []

    def at(rate):
        def compute():
            made.append(rate)
            return {"fall": math.nan if rate > 1 else rate / 3}

        return compute

    for _ in range(2):
        kept = Kept(file)
        for rate in (0.1, 2.0, 0.1):
            found = kept.once(["fall", ("a", rate)], at(rate), lambda row: row["fall"])
            assert found == rate / 3 or (rate > 1 and math.isnan(found))
    assert made == [0.1, 2.0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    # Catches an operating system's error in the middle of a study.
    (tmp_path / "in the way").write_text("")
    with pytest.raises(StoreError, match="in the way.*can't be written"):
        Kept(tmp_path / "in the way" / "rows.jsonl")


@pytest.mark.parametrize("left", ["", '{"identi'])
def test_a_file_that_was_only_begun_is_begun_again(tmp_path, left):
    # Catches a study that a kill at its first line ends for ever.
    file = tmp_path / "rows.jsonl"
    file.write_text(left)
    Kept(file, "a").add({"x": 1})
    assert Kept(file, "a").rows == [{"x": 1}]
