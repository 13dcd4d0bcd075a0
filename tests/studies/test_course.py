import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fisherscope.data import Example
from fisherscope.likelihoods import Classification
from fisherscope.studies.course import at_level, follow
from fisherscope.studies.tuning import Schedule, fine_tune, row_batches


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


def net(dropout=0.0):
    torch.manual_seed(0)
    return Net(dropout)


def labelled(count, seed):
    source = torch.Generator().manual_seed(seed)
    return [
        Example(
            f"{seed}:{i}",
            {"x": torch.randn(4, generator=source)},
            torch.randint(3, (), generator=source),
        )
        for i in range(count)
    ]


LEARN = labelled(12, 1)
WATCH = {"old": labelled(7, 2), "new": labelled(5, 3)}
SCHEDULE = Schedule(steps=7, peak=0.05)


def course(model, **options):
    given = {"likelihood": Classification(), "batch_rows": 4, "seed": 0, "every": 3, **options}
    return follow(model, LEARN, WATCH, given.pop("schedule", SCHEDULE), **given)


def loss(model, rows):
    x = torch.stack([row.inputs["x"] for row in rows])
    return float(F.cross_entropy(model(x), torch.stack([row.labels for row in rows])).detach())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_course_is_that_of_the_fine_tuning_alone(dropout):
    # Catches measurements in training mode, ones that disturb the dropout's random numbers,
    # and ones taken a step early or late.
    model = net(dropout).eval()
    before = copy.deepcopy(model.state_dict())
    found = course(model)
    assert found.steps == (0, 3, 6, 7)
    assert found.outcome == "ok"
    for i, steps in enumerate(found.steps):
        alone = copy.deepcopy(model)
        if steps:
            fine_tune(
                alone,
                row_batches(LEARN, 4),
                SCHEDULE,
                likelihood=Classification(),
                seed=0,
                on_step=lambda step, _, last=steps: step + 1 == last,
                progress=False,
            )
        for task, rows in WATCH.items():
            assert found.mean(task)[i] == pytest.approx(loss(alone, rows), abs=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_penalty_is_made_for_the_copy():
    # Catches a penalty that holds the user's model and so never moves the copy.
    held = []

    def penalty(copied):
        held.append(copied)
        return lambda: [p.grad.zero_() for p in copied.parameters()]

    model = net()
    found = course(model, penalty=penalty, schedule=Schedule(steps=4, peak=0.1, weight_decay=0.0))
    assert held[0] is not model
    assert np.ptp(found.mean("new")) == 0


def test_a_divergence_ends_the_course_and_is_said():
    # Catches a study that raises, or one that reports losses of broken weights.
    def penalty(copied):
        taken = []

        def spoil():
            taken.append(1)
            if len(taken) == 2:
                copied.head.weight.data.fill_(torch.nan)

        return spoil

    found = course(net(), penalty=penalty, every=1)
    assert found.outcome == "diverged"
    assert found.steps == (0, 1)
    assert all(np.isfinite(rows).all() for rows in found.losses.values())


def test_points_are_told_at_every_measurement():
    seen = []
    found = course(net(), on_point=lambda _, taken: seen.append(taken))
    assert tuple(seen) == found.steps


def test_counts_weigh_examples():
    found = course(net())
    counts = np.zeros(7)
    counts[2] = 3
    assert found.mean("old", counts)[0] == pytest.approx(found.losses["old"][0, 2])
    assert len(found.to_frame()) == 8


def test_the_level_is_met_where_it_is_first_crossed():
    # Catches the last crossing, the nearest measurement, and a level that is never reached.
    new = np.array([3.0, 2.0, 1.0, 2.0, 1.0])
    old = np.array([0.0, 1.0, 3.0, 9.0, 9.0])
    assert at_level(new, old, 1.5) == pytest.approx(2.0)
    assert at_level(new, old, 3.5) == 0
    assert math.isnan(at_level(new, old, 0.5))
