from __future__ import annotations

import numpy as np
import pytest

from fisherscope.analysis.spectrum.probes import Stream, gaussian, rademacher


# Would catch: vectors drawn from one running stream, so that they depend on their company.
@pytest.mark.parametrize("draw", [gaussian, rademacher])
def test_a_vector_depends_on_its_index_alone(draw):
    many = draw(3, Stream.PROBE, range(6), 40)
    np.testing.assert_array_equal(draw(3, Stream.PROBE, [4], 40)[:, 0], many[:, 4])
    assert len(np.unique(many, axis=1).T) == 6


# Would catch: a sketch made of the very vectors that estimate what it leaves.
@pytest.mark.parametrize("draw", [gaussian, rademacher])
def test_streams_and_seeds_are_independent(draw):
    drawn = [draw(s, t, range(4), 5000) for s in (0, 1) for t in Stream]
    gram = np.hstack(drawn).T @ np.hstack(drawn) / 5000
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=0.1)


# Would catch: signs in {0, 1}, or scaled.
def test_moments():
    signs = rademacher(0, Stream.PROBE, range(4), 10_000)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.02
    normal = gaussian(0, Stream.PROBE, range(4), 10_000)
    assert abs(normal.std() - 1) < 0.02
    assert abs((normal**4).mean() - 3) < 0.2
