"""One forward, one backward: every use of every parameter is observed."""
