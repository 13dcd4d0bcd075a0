import dataclasses
import json

import pytest
import torch

from fisherscope.defaults import DEFAULTS
from fisherscope.errors import IdentityError, ParameterError, StoreError
from fisherscope.structures import FisherEMA
from structures.fishers import SHAPES, build, scores
from structures.matrices import make

STEPS = [
    build(scores([f"{i}{j}" for j in "abc"], seed=i), model_fingerprint=str(i), seed=i)
    for i in range(12)
]


@pytest.mark.parametrize("structure", ["diagonal", "grouped"])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_a_constant_is_recovered_to_the_last_bit_from_the_first_step_on(structure, decay):
    # Catches: bias correction of an average that starts at the first value (100 times too
    # large at step 1 with decay 0.99), and no correction at all.
    fisher = build(scores("abc"), structure=structure)
    ema = FisherEMA(decay)
    for _ in range(30):
        ema.update(fisher)
        corrected = ema.corrected()
        assert all(torch.equal(corrected[n], fisher.means()[n]) for n in SHAPES)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99])
def test_against_the_recursion_from_zero_in_float64(decay):
    # Catches: weights of the wrong step, a swapped decay, and unnormalised sums.
    ema = FisherEMA(decay)
    state = {n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()}
    for t, fisher in enumerate(STEPS, start=1):
        ema.update(fisher)
        for name, mean in fisher.means().items():
            state[name] = decay * state[name] + (1 - decay) * mean.double()
            corrected = state[name] / (1 - decay**t)
            torch.testing.assert_close(ema.corrected()[name].double(), corrected, rtol=2e-6, atol=0)
            torch.testing.assert_close(ema.raw()[name].double(), state[name], rtol=2e-6, atol=0)
    assert ema.steps == 12
    assert FisherEMA().decay == DEFAULTS.ema_decay


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_saving_and_loading_between_updates_changes_no_bit(tmp_path, stop):
    # Catches: a state that is rounded, divided or short of its step count on disk.
    straight, stopped = FisherEMA(0.9), FisherEMA(0.9)
    for fisher in STEPS[:stop]:
        straight.update(fisher)
        stopped.update(fisher)
    stopped.save(tmp_path / "ema")
    stopped = FisherEMA.load(tmp_path / "ema")
    assert (stopped.decay, stopped.steps) == (0.9, stop)
    for fisher in STEPS[stop:]:
        straight.update(fisher)
        stopped.update(fisher)
    assert all(torch.equal(straight.corrected()[n], stopped.corrected()[n]) for n in SHAPES)
    stopped.save(tmp_path / "ema")
    assert FisherEMA.load(tmp_path / "ema").steps == 12


def test_what_goes_in_and_comes_out_is_not_shared():
    # Catches: updating the first Fisher in place, or handing out the state.
    fisher = build(scores("abc"), dtype=torch.float32)
    before = fisher.trace()
    ema = FisherEMA(0.5)
    ema.update(fisher)
    ema.corrected()["a.bias"].zero_()
    assert ema.corrected()["a.bias"].sum() > 0
    ema.update(build(scores("def", seed=1)))
    assert fisher.trace() == before


def test_unlike_fishers_are_refused_and_leave_no_trace():
    # Catches: averaging apples and pears, and a half-done update.
    ema = FisherEMA(0.5)
    ema.update(STEPS[0])
    before = ema.corrected()
    for change in ({"unit": "token"}, {"fisher_type": "mc"}, {"likelihood": "masked-lm"}):
        with pytest.raises(IdentityError, match=next(iter(change))):
            ema.update(build(scores("abc"), **change))
    with pytest.raises(IdentityError, match="structure"):
        ema.update(build(scores("abc"), structure="grouped"))
    assert ema.steps == 1
    assert all(torch.equal(ema.corrected()[n], before[n]) for n in SHAPES)


def test_another_grouping_is_refused():
    # Catches: [out, 1] and [1, out] broadcasting into a full matrix.
    one = build(scores("abc"), structure="grouped")
    turned = {**one.sums, "square.weight": one.sums["square.weight"].T.contiguous()}
    ema = FisherEMA(0.5)
    ema.update(one)
    with pytest.raises(ParameterError, match="'square.weight'"):
        ema.update(dataclasses.replace(one, sums=turned))
    assert ema.steps == 1


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    # Catches: dividing by 1 - 1**t.
    with pytest.raises(ParameterError, match="decay="):
        FisherEMA(decay)


def test_an_empty_average_says_what_to_do():
    # Catches: an empty dictionary passing for a result.
    with pytest.raises(ParameterError, match="update"):
        FisherEMA().corrected()
    assert FisherEMA().raw() == {}


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    # Catches: going on from a state that was changed, or from a Fisher's folder.
    with pytest.raises(StoreError, match=r"ema\.json"):
        FisherEMA.load(tmp_path / "none")
    STEPS[0].save(tmp_path / "fisher")
    with pytest.raises(StoreError, match=r"ema\.json"):
        FisherEMA.load(tmp_path / "fisher")
    ema = FisherEMA(0.5)
    ema.update(STEPS[0])
    with pytest.raises(StoreError, match="not overwritten"):
        ema.save(tmp_path / "fisher")
    ema.save(tmp_path / "ema")
    manifest = tmp_path / "ema" / "ema.json"
    body = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**body, "steps": 2}))
    with pytest.raises(StoreError, match="changed after"):
        FisherEMA.load(tmp_path / "ema")


def test_blocks_are_not_averaged():
    # Catches: the mean of factors passing for the factors of a mean.
    with pytest.raises(ParameterError, match="not 'kfac'"):
        FisherEMA().update(make("kfac joint"))
