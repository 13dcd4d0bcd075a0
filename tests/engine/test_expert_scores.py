"""Routed rows of any number: Hypothesis draws who chose which expert."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fisherscope.engine.expert_scores import ExpertScore, _alike

BATCH, STACK, OUT, IN = 4, 3, 3, 2
SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
COUNTS = st.lists(st.integers(0, 9), min_size=BATCH * STACK, max_size=BATCH * STACK)


def drawn(counts: list[int], bias: bool, transposed: bool):
    """A score, and every row's own gradient [rows, experts, ...]."""
    g = torch.Generator().manual_seed(len(counts) + sum(counts))
    pairs = torch.arange(BATCH * STACK).repeat_interleave(torch.tensor(counts))
    expert, example = pairs // BATCH, pairs % BATCH
    left = torch.randn(len(pairs), OUT, generator=g, dtype=torch.float64)
    right = torch.randn(len(pairs), IN, generator=g, dtype=torch.float64)
    own = left if bias else torch.einsum("so,si->s" + ("io" if transposed else "oi"), left, right)
    one_hot = torch.nn.functional.one_hot(expert, STACK).double()
    single = torch.einsum("se,s...->se...", one_hot, own)
    score = ExpertScore(left, None if bias else right, expert, example, BATCH, transposed)
    return score, single, example


# Would catch: rows that only fill up counted as if they were there, examples padded together
# whose counts differ, an example that none of an expert's rows belongs to, no rows at all.
@SETTINGS
@given(COUNTS, st.booleans(), st.booleans())
def test_against_dense_gradients(counts, bias, transposed):
    score, single, example = drawn(counts, bias, transposed)
    whole = single.new_zeros(BATCH, *single.shape[1:]).index_add_(0, example, single)
    total, delta = torch.zeros_like(whole[0]), torch.ones_like(whole[0])
    norms = score.squares(total)
    assert torch.allclose(total, whole.square().sum(0))
    assert torch.allclose(norms, whole.flatten(1).square().sum(1))
    groups = torch.zeros(STACK, *[1] * (whole.ndim - 2), dtype=torch.float64)
    assert torch.allclose(score.row_squares(groups), norms)
    assert torch.allclose(groups.flatten(), whole.square().sum(0).flatten(1).sum(1))
    for total in (torch.zeros_like(whole[0]), torch.zeros_like(groups)):
        per = score.position_squares(total)
        assert torch.allclose(total, single.square().sum(0).sum_to_size(total.shape))
        assert torch.allclose(
            per, norms.new_zeros(BATCH).index_add_(0, example, single.flatten(1).square().sum(1))
        )
    assert torch.allclose(score.inner(delta), whole.flatten(1).sum(1))
    assert torch.allclose(score.dense(slice(1, 3), whole.shape[1:]), whole[1:3])
    added = torch.zeros_like(whole[0])
    score.add(added, torch.arange(BATCH))
    assert torch.allclose(added, torch.einsum("n,n...->...", torch.arange(4.0).double(), whole))


# Would catch: one long example among many short ones that pads all of them to its length.
@SETTINGS
@given(st.lists(st.integers(1, 500), min_size=1, max_size=30))
def test_padding_wastes_at_most_as_much_again(counts):
    held = torch.tensor(counts)
    groups = list(_alike(torch.arange(len(counts)), held))
    assert sorted(torch.cat(groups).tolist()) == list(range(len(counts)))
    padded = sum(len(group) * int(held[group].max()) for group in groups)
    assert padded <= 2 * sum(counts)
