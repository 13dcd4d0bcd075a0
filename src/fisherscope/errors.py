"""Every exception that fisherscope raises on purpose.

Each message names the offending thing and the fix. All classes derive from
:class:`FisherscopeError`, so ``except fs.FisherscopeError`` catches whatever the
library has to say, and nothing else.
"""


class FisherscopeError(Exception):
    """Base class of all deliberate errors of this library."""


class CoverageError(FisherscopeError, ValueError):
    """A requested parameter cannot be estimated exactly as asked."""


class IdentityError(FisherscopeError, ValueError):
    """Two things that must agree (model, data, unit, structure, ...) do not."""


class DataError(FisherscopeError, ValueError):
    """An example, a row or a file of data cannot be used."""


class LikelihoodError(FisherscopeError, ValueError):
    """The likelihood does not fit the model or its labels."""


class NonFiniteError(FisherscopeError, ArithmeticError):
    """A weight, a log-probability or a score is NaN or infinite."""


class ParameterError(FisherscopeError, ValueError):
    """A parameter name, pattern or option is unknown or has an unusable value."""


class TaskError(FisherscopeError, LookupError):
    """A task name is unknown, unusable or already taken."""


class ConfigError(FisherscopeError, ValueError):
    """A configuration file or command-line option is wrong."""


class RankError(FisherscopeError, RuntimeError):
    """One of several processes that work together has died, or never came."""


class StoreError(FisherscopeError, OSError):
    """A stored Fisher or run folder is missing, damaged, foreign or not writable."""
