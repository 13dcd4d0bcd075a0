"""Bytes of tensors that are alive, counted."""

from __future__ import annotations

import torch

from fisherscope.engine.live import LiveBytes


# Would catch: views counted again, what is gone still counted, what is known counted.
def test_what_is_alive_at_most():
    known = torch.ones(500)
    with LiveBytes([known]) as live:
        first = torch.ones(1000)
        again = first.view(10, 100) * 2
        del first
        last = torch.ones(500) + known[:500]
    assert (live.peak, live.now) == (8000, 6000)
    assert again.numel() + last.numel() == 1500


# Planted: a storage's size when it was first seen. This is how fully_shard lets memory go, and
# takes it again.
def test_storages_that_change_their_size():
    with LiveBytes() as live:
        weight = torch.ones(1000)
        storage = weight.untyped_storage()
        storage.resize_(0)
        other = torch.ones(1000)
        assert live.peak == 4000
        storage.resize_(4000)
        weight.fill_(1.0)
    assert (live.peak, live.now) == (8000, 8000)
    assert other.numel() == 1000
