import json

import pytest

from fisherscope.errors import IdentityError, ParameterError
from fisherscope.structures import BlockLayout
from fisherscope.structures.layout import check_partition, check_same
from structures.matrices import BLOCKWISE, CASES, diag, kron


@pytest.mark.parametrize("case", BLOCKWISE)
def test_layouts_survive_json(case):
    # Catches: tuples that come back as lists and then differ, and lost options.
    for block in CASES[case].layout:
        again = BlockLayout.from_json(json.loads(json.dumps(block.to_json())))
        assert again == block
        assert hash(again) == hash(block)


def test_a_block_uses_its_own_inputs_unless_told():
    # Catches: two spellings of one block, and factors for blocks that have none.
    assert BlockLayout("kronecker", ("w", "b")) == BlockLayout("kronecker", ("w", "b"), inputs="w")
    assert BlockLayout("dense", ("w",)).inputs == ""
    assert kron("k", inputs="q").inputs == "q"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "full", "names": ("w",)}, r"kind='full' of the block w .*'kronecker'"),
        ({"kind": "dense", "names": ()}, "names its parameters once"),
        ({"kind": "dense", "names": ("w", "w")}, "once each"),
        ({"kind": "eigen", "names": ("w", "b", "c")}, r"a weight and its bias.*'c'"),
        ({"kind": "dense", "names": ("w",), "outputs_second": True}, "mean nothing.*dense"),
        ({"kind": "diagonal", "names": ("w",), "inputs": "q"}, "mean nothing.*diagonal"),
    ],
)
def test_blocks_that_mean_nothing_are_refused(fields, said):
    # Catches: options that are silently ignored.
    with pytest.raises(ParameterError, match=said):
        BlockLayout(**fields)


def test_every_parameter_is_in_one_block():
    # Catches: parameters that count twice, or not at all.
    check_partition((kron("w", "b"), diag("s")), ["s", "w", "b"])
    with pytest.raises(ParameterError, match="'t' to 0"):
        check_partition((diag("s"),), ["s", "t"])
    with pytest.raises(ParameterError, match="'s' to 2"):
        check_partition((diag("s"), kron("w", "s")), ["s", "w"])
    with pytest.raises(ParameterError, match="'x' to 1"):
        check_partition((diag("s", "x"),), ["s"])


def test_the_first_block_that_differs_is_named():
    # Catches: comparing lengths only, or as sets.
    one = (diag("s"), kron("w"), kron("v"))
    check_same(one, tuple(one))
    with pytest.raises(IdentityError, match=r"added: block 1 is .*'w'.*outputs_second=True"):
        check_same(one, (diag("s"), kron("w", outputs_second=True), kron("v")))
    with pytest.raises(IdentityError, match=r"compared: block 2 is .*'v'.* and absent"):
        check_same(one, one[:2], "compared")
    with pytest.raises(IdentityError, match="block 0"):
        check_same(one, one[::-1])
