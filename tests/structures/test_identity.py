import dataclasses

import pytest

from fisherscope.errors import IdentityError
from fisherscope.structures import Identity
from structures.fishers import build, scores

IDENTITY = build(scores("ab")).identity


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Identity)])
def test_a_differing_field_is_named_with_both_values(field):
    # Catches: a field left out of the comparison, or a message without one of the values.
    value = getattr(IDENTITY, field)
    other = 7 if isinstance(value, int) else "other"
    if field == "parameters":
        other = {**value, "a.bias": (9,)}
    changed = dataclasses.replace(IDENTITY, **{field: other})
    if field in {"data_fingerprint", "version"}:
        IDENTITY.check(changed)
        with pytest.raises(IdentityError, match=field):
            IDENTITY.check(changed, ignore=())
        return
    with pytest.raises(IdentityError) as caught:
        IDENTITY.check(changed)
    texts = ("'a.bias'", "(3,)", "(9,)") if field == "parameters" else (repr(value), repr(other))
    for text in (field, *texts):
        assert text in str(caught.value)
    IDENTITY.check(changed, ignore=("data_fingerprint", "version", field))


def test_a_message_about_many_parameters_stays_readable():
    # Catches: dumping hundreds of names into one message.
    many = {f"layer.{i}": (2,) for i in range(300)}
    with pytest.raises(IdentityError, match="and 298 more") as caught:
        dataclasses.replace(IDENTITY, parameters=many).check(IDENTITY)
    assert len(str(caught.value)) < 500


def test_two_fields_are_both_named():
    # Catches: stopping at the first difference.
    changed = dataclasses.replace(IDENTITY, unit="token", dtype="bfloat16")
    with pytest.raises(IdentityError, match=r"unit is 'example' and 'token'.*dtype is"):
        IDENTITY.check(changed)


def test_data_fingerprints_add_modulo_2_to_the_128():
    # Catches: concatenating or xor-ing the fingerprints, losing leading zeros or the modulus.
    high = dataclasses.replace(IDENTITY, data_fingerprint="f" * 32)
    two = dataclasses.replace(IDENTITY, data_fingerprint=f"{2:032x}")
    assert (high + two).data_fingerprint == (two + high).data_fingerprint == f"{1:032x}"
    assert (two + two).data_fingerprint == f"{4:032x}"


def test_differing_versions_are_both_kept_whatever_the_order():
    # Catches: silently taking the first summand's version.
    newer = dataclasses.replace(IDENTITY, version="0.2.0")
    assert (newer + IDENTITY).version == (IDENTITY + newer).version == "0.1.0,0.2.0"
    assert (newer + IDENTITY + newer).version == "0.1.0,0.2.0"


def test_json_round_trip_keeps_the_order_of_parameters():
    # Catches: shapes coming back as lists (never equal to tuples), or sorted names.
    identity = dataclasses.replace(IDENTITY, parameters={"z": (2, 1), "a": (), "m": (3,)})
    again = Identity.from_json(identity.to_json())
    assert again == identity
    assert list(again.parameters) == ["z", "a", "m"]
