import dataclasses

import pytest

import fisherscope as fs
from fisherscope.errors import ParameterError
from fisherscope.specs import EKFAC, KFAC, Block, Dense, Diagonal, Grouped, Spec, base_name, parse
from fisherscope.structures import Fisher

TEXTS = {
    "diagonal": Diagonal(),
    "grouped": Grouped(),
    "block": Block(),
    "block(per=layer)": Block(per="layer"),
    "dense": Dense(),
    "kfac": KFAC(),
    "kfac(sharing=reduce)": KFAC(sharing="reduce"),
    "kfac(bias=separate,widest=64)": KFAC(bias="separate", widest=64),
    "kfac(sharing=reduce,bias=separate,widest=4096)": KFAC("reduce", "separate", 4096),
    "ekfac": EKFAC(),
    "ekfac(widest=1)": EKFAC(widest=1),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_spec_say_the_same(text):
    # Catches: defaults in the text, options in another order, and a number read as text: each
    # makes two identities of one structure.
    spec = TEXTS[text]
    assert str(spec) == text
    assert parse(text) == spec
    assert type(parse(text)) is type(spec)
    assert parse(spec) is spec
    assert base_name(text) == base_name(spec) == spec.name
    assert hash(parse(text)) == hash(spec)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("kfac()", "kfac"),
        (" kfac ( bias = separate ) ", "kfac(bias=separate)"),
        ("kfac(widest=64,bias=separate)", "kfac(bias=separate,widest=64)"),
        ("kfac(bias=joint,sharing=expand)", "kfac"),
        ("block(per=tensor)", "block"),
    ],
)
def test_other_spellings_have_one_canonical_text(written, canonical):
    # Catches: comparing what the user wrote instead of what it means.
    assert str(parse(written)) == canonical


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("full", r"structure='full' is unknown.*'diagonal'.*'ekfac'"),
        ("", "structure='' is unknown"),
        ("KFAC", "'KFAC' is unknown.*'kfac'"),
        ("kfac(", "is unknown"),
        ("kfac)", "is unknown"),
        ("kfac(widest=64", "is unknown"),
        (None, "structure=None is unknown"),
        (3, "structure=3 is unknown"),
        (KFAC, "is unknown"),
        ("kfac(depth=3)", r"'depth=3' is not one of the options of 'kfac'.*'widest=\.\.\.'"),
        ("kfac(reduce)", "'reduce' is not one of"),
        ("kfac(widest=2,widest=3)", "'widest=3' .*at most once"),
        ("dense(per=layer)", "'per=layer'.*there are none"),
        ("kfac(name=x)", "'name=x' is not one of"),
        ("kfac(sharing=sum)", r"sharing='sum' is unknown; use one of \['expand', 'reduce'\]"),
        ("kfac(sharing=)", "sharing='' is unknown"),
        ("block(per=3)", "per=3 is unknown"),
        ("kfac(widest=0)", "widest=0 must be a whole number of at least 1"),
        ("kfac(widest=-2)", "widest=-2 must"),
        ("kfac(widest=2.5)", "widest='2.5' must"),
        ("kfac(widest=None)", "widest='None' must"),
        ("kfac(widest=٣)", "widest='٣' must"),
    ],
)
def test_what_is_unknown_is_named_with_what_is_allowed(text, said):
    # Catches: unknown options ignored, a bare KeyError or ValueError, and None as text.
    with pytest.raises(ParameterError, match=said):
        parse(text)


@pytest.mark.parametrize("wrong", [{"widest": True}, {"widest": 2.0}, {"bias": None}])
def test_specs_check_themselves_too(wrong):
    # Catches: options that only text is checked for; True is an int.
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        KFAC(**wrong)


def test_specs_are_frozen_and_every_structure_has_a_spec_and_a_class():
    # Catches: a structure that can be asked for and not held, or the reverse.
    with pytest.raises(dataclasses.FrozenInstanceError):
        KFAC().widest = 3  # pyright: ignore
    assert set(Spec._registry) == set(Fisher._registry)
    for text, spec in TEXTS.items():
        assert Fisher.of_structure(spec) is Fisher.of_structure(text)
        assert Fisher.of_structure(text).structure == spec.name


def test_public_names_and_the_default():
    # Catches: a spec that users can't reach, and a default that is no structure.
    assert (fs.KFAC, fs.EKFAC, fs.Block, fs.Dense) == (KFAC, EKFAC, Block, Dense)
    assert fs.DEFAULTS.structure == "diagonal"
    assert fs.FisherConfig(structure=KFAC(widest=8)).structure == KFAC(widest=8)
