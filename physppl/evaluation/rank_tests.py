"""Are values uniform on [0, 1]? What simulation-based calibration asks of ranks: tests, acceptance bands, power."""

from numbers import Integral

import numpy as np
from jaxtyping import Bool, Float
from numpy.random import Generator
from scipy import stats

COVERED = 0.9  # the central interval whose coverage is tested: it sees a wrong sd, which a rank statistic hardly does


def ks(values: Float[np.ndarray, " N"]) -> float:
    """p of the Kolmogorov-Smirnov test, exact: it sees a bias."""
    return float(stats.kstest(values, "uniform").pvalue)


def inside(values: Float[np.ndarray, " N"], level: float) -> int:
    """How many lie in the central interval of this probability."""
    return int(np.sum(np.abs(values - 0.5) < level / 2))


def coverage(values: Float[np.ndarray, " N"], level: float = COVERED) -> float:
    """p of the exact two-sided binomial test of a central interval's coverage."""
    return float(stats.binomtest(inside(values, level), len(values), level).pvalue)


def coverage_band(count: int, level: float, error: float) -> tuple[float, float]:
    """The coverages that `count` data sets may show: those whose binomial test has p of at least `error`."""
    covered = np.arange(count + 1)
    mass = stats.binom.pmf(covered, count, level)
    # As in the exact test: p is the mass of all outcomes that are no likelier.
    order = np.argsort(mass)
    p = np.empty(count + 1)
    p[order] = np.cumsum(mass[order])
    kept = covered[p >= error] / count
    return float(kept.min()), float(kept.max())


def ecdf_band(count: int, error: float) -> float:
    """How far the empirical distribution of `count` uniform values may stray anywhere (two-sided KS statistic)."""
    return float(stats.kstwo.isf(error, count))


def rejected(values: Float[np.ndarray, "R N"], error: float) -> Bool[np.ndarray, " R"]:
    """Whether either test, both at level `error`, rejects each row."""
    count = values.shape[1]
    ordered, at = np.sort(values, axis=1), np.arange(1, count + 1) / count
    stray = np.maximum((at - ordered).max(axis=1), (ordered - at + 1 / count).max(axis=1))
    low, high = coverage_band(count, COVERED, error)
    covered = np.mean(np.abs(values - 0.5) < COVERED / 2, axis=1)
    return (stray > ecdf_band(count, error)) | (covered < low - 1e-9) | (covered > high + 1e-9)


def power(
    datasets: int,
    *,
    scale: float = 1.0,
    bias: float = 0.0,
    quantities: int = 1,
    level: float = 0.01,
    draws: int = 99,
    runs: int = 2000,
    seed: int = 0,
) -> float:
    """How often calibration over so many data sets rejects a Gaussian belief with a known defect.

    Args:
        scale: the belief's sd over the right one.
        bias: its error in mean, in right sds.
        quantities: that share the family-wise `level`, two tests each; all have the defect, and their ranks are taken
            as independent.
        draws: of each belief, from which ranks are made.
        runs: simulated calibrations; the answer's standard error is at most 0.5 / sqrt(runs).

    Raises:
        ValueError: for a scale that is not positive, a bias that is not finite, a level outside (0, 1), or counts that
            are not whole numbers from 1.
    """
    if not 0 < scale < np.inf or not np.isfinite(bias) or not 0 < level < 1:
        got = f"{scale}, {bias} and {level}"
        raise ValueError(f"power needs a finite scale > 0, a finite bias and 0 < level < 1; got {got}.")
    check_counts("power", datasets=datasets, quantities=quantities, draws=draws, runs=runs)
    rng, each = np.random.default_rng(seed), level / (2 * quantities)
    found = np.zeros(runs, bool)
    for _ in range(quantities):
        below = stats.norm.cdf((rng.normal(size=(runs, datasets)) - bias) / scale)
        found |= rejected(spread_ranks(rng, rng.binomial(draws, below), draws), each)
    return float(np.mean(found))


def check_counts(where: str, **counts) -> None:
    """Refuse what counts nothing.

    Raises:
        ValueError: naming the argument, and who asks.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{where}: {name} must be a whole number of at least 1; got {value!r}.")


def spread_ranks(rng: Generator, ranks, draws: int) -> Float[np.ndarray, "..."]:
    """Ranks 0 to `draws` as values that are exactly uniform where the ranks are: each spread over its own bin."""
    return (np.asarray(ranks) + rng.uniform(size=np.shape(ranks))) / (draws + 1)
