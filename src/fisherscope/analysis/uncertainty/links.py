"""From normally distributed logits to probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, softmax

# Elements of [rows, classes, classes] or [rows, samples, classes] that exist at once.
_ELEMENTS = 2**22


@dataclass(frozen=True, eq=False)
class Predictive:
    """Probabilities with their spread.

    Attributes:
        probabilities: float64 [n, c].
        spread: float64 [n, c], standard deviation of each probability under the posterior.
        information: float64 [n], nats that the label would tell about the weights (entropy
            of the mean less mean entropy), or ``None`` where it is not known.
    """

    probabilities: np.ndarray
    spread: np.ndarray
    information: np.ndarray | None = None


def probit(logits: np.ndarray, covariance: np.ndarray) -> Predictive:
    r"""The probit approximation of the expected softmax, from pairs of logits.

    .. math:: p_c \propto \Big[\sum_j \exp\big(-(f_c - f_j) / \sqrt{1 + \tfrac\pi8 v_{cj}}
              \big)\Big]^{-1}, \quad v_{cj} = S_{cc} + S_{jj} - 2 S_{cj}

    With two classes this is MacKay's (1992) approximation; with more, that of Lu, Ie and Sha
    (2020). Softmax knows only differences of logits, and so does this: the common
    ``softmax(f / sqrt(1 + π/8 diag S))`` changes when a constant is added to all logits.
    The spread is the delta method's.

    Args:
        logits: [n, c].
        covariance: [n, c, c].

    Returns:
        Probabilities that sum to one.
    """
    n, c = logits.shape
    step = max(1, _ELEMENTS // (c * c))
    parts = [_probit(logits[i : i + step], covariance[i : i + step]) for i in range(0, n, step)]
    probabilities = np.concatenate(parts) if parts else np.zeros((0, c))
    return Predictive(probabilities, delta(softmax(logits, -1), covariance))


def _probit(logits: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    own = np.diagonal(covariance, axis1=1, axis2=2)
    apart = np.clip(own[:, :, None] + own[:, None, :] - 2 * covariance, 0, None)
    difference = logits[:, :, None] - logits[:, None, :]
    return softmax(-logsumexp(-difference / np.sqrt(1 + np.pi / 8 * apart), axis=2), -1)


def delta(probabilities: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    r"""Standard deviations of probabilities by the delta method.

    Args:
        probabilities: [n, c], the softmax at the mean logits.
        covariance: [n, c, c], of the logits.

    Returns:
        [n, c], the root of :math:`g_c^\top S g_c` with :math:`g_c = p_c (e_c - p)`.
    """
    p = probabilities
    mixed = np.einsum("ncd,nd->nc", covariance, p)
    whole = np.einsum("nc,nc->n", mixed, p)[:, None]
    variance = np.diagonal(covariance, axis1=1, axis2=2) - 2 * mixed + whole
    return p * np.sqrt(np.clip(variance, 0, None))


def sampled(logits: np.ndarray, covariance: np.ndarray, samples: int, seed: int) -> Predictive:
    """The expected softmax by sampling the logits.

    All rows share the standard normal numbers, so a row's answer does not depend on its batch.

    Args:
        logits: [n, c].
        covariance: [n, c, c].
        samples: Number of samples.
        seed: Of the samples.

    Returns:
        Means and standard deviations over samples.
    """
    n, c = logits.shape
    noise = np.random.default_rng(seed).standard_normal((samples, c))
    running = Running(n, c)
    values, vectors = np.linalg.eigh(covariance)
    # The symmetric root: the same whichever signs the eigenvectors came with.
    roots = (vectors * np.sqrt(np.clip(values, 0, None))[:, None, :]) @ vectors.swapaxes(1, 2)
    for one in noise:
        running.add(softmax(logits + roots @ one, -1))
    return running.predictive()


class Running:
    """Means over samples of probabilities, never of logits.

    Args:
        n: Number of rows.
        c: Number of columns.
    """

    def __init__(self, n: int, c: int):
        self.count = 0
        self._mean = np.zeros((n, c))
        self._squares = np.zeros((n, c))
        self._entropy = np.zeros(n)

    def add(self, p: np.ndarray) -> None:
        """Take one sample.

        Args:
            p: Probabilities [n, c].
        """
        self.count += 1
        off = p - self._mean
        self._mean += off / self.count
        self._squares += off * (p - self._mean)
        self._entropy += entropy(p)

    def predictive(self) -> Predictive:
        """What the samples say together.

        Returns:
            Mean, standard deviation and mutual information.
        """
        spread = np.sqrt(self._squares / max(self.count - 1, 1))
        known = entropy(self._mean) - self._entropy / self.count
        return Predictive(self._mean, spread, np.clip(known, 0, None))


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy of each row.

    Args:
        p: Probabilities [n, c].

    Returns:
        Nats [n].
    """
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
