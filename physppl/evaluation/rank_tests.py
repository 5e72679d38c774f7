"""Tests that values are uniform on [0, 1], for the ranks of simulation-based calibration; their bands and power."""

import numpy as np
from jaxtyping import Bool, Float
from numpy.random import Generator
from scipy import stats

from physppl.internal.errors import check_counts

COVERED = 0.9  # central interval whose coverage is tested, sensitive to a wrong sd, as the KS statistic hardly is


def ks(values: Float[np.ndarray, " N"]) -> float:
    """Exact p value of the Kolmogorov-Smirnov test, which is sensitive to bias."""
    return float(stats.kstest(values, "uniform").pvalue)


def inside(values: Float[np.ndarray, " N"], level: float) -> int:
    """Number of values in the central interval of this probability."""
    return int(np.sum(np.abs(values - 0.5) < level / 2))


def coverage(values: Float[np.ndarray, " N"], level: float = COVERED) -> float:
    """P value of the exact two-sided binomial test of a central interval's coverage."""
    return float(stats.binomtest(inside(values, level), len(values), level).pvalue)


def coverage_band(count: int, level: float, error: float) -> tuple[float, float]:
    """Range of accepted coverages over `count` data sets: those whose binomial test has p of at least `error`."""
    covered = np.arange(count + 1)
    mass = stats.binom.pmf(covered, count, level)
    # As in the exact test, p is the mass of all outcomes that are at most as likely.
    order = np.argsort(mass)
    p = np.empty(count + 1)
    p[order] = np.cumsum(mass[order])
    accepted = covered[p >= error] / count
    return float(accepted.min()), float(accepted.max())


def ecdf_band(count: int, error: float) -> float:
    """Accepted deviation of the empirical distribution of `count` uniform values (two-sided KS statistic)."""
    return float(stats.kstwo.isf(error, count))


def rejected(values: Float[np.ndarray, "R N"], error: float) -> Bool[np.ndarray, " R"]:
    """True for each row that either test rejects, both at level `error`."""
    count = values.shape[1]
    ordered, steps = np.sort(values, axis=1), np.arange(1, count + 1) / count
    deviation = np.maximum((steps - ordered).max(axis=1), (ordered - steps + 1 / count).max(axis=1))
    low, high = coverage_band(count, COVERED, error)
    covered = np.mean(np.abs(values - 0.5) < COVERED / 2, axis=1)
    return (deviation > ecdf_band(count, error)) | (covered < low - 1e-9) | (covered > high + 1e-9)


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
    """Probability that calibration over this number of data sets rejects a Gaussian posterior with a known defect.

    Args:
        scale: the posterior's sd over the exact one.
        bias: error of its mean, in exact sds.
        quantities: number of quantities that share the family-wise `level`, two tests each; all have the defect, and
            their ranks are taken as independent.
        draws: draws of each posterior, among which truths are ranked.
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
    rejections = np.zeros(runs, bool)
    for _ in range(quantities):
        below = stats.norm.cdf((rng.normal(size=(runs, datasets)) - bias) / scale)
        rejections |= rejected(spread_ranks(rng, rng.binomial(draws, below), draws), each)
    return float(np.mean(rejections))


def spread_ranks(rng: Generator, ranks, draws: int) -> Float[np.ndarray, "..."]:
    """Map ranks 0 to `draws` to [0, 1], each at random within its bin: uniform exactly where the ranks are."""
    return (np.asarray(ranks) + rng.uniform(size=np.shape(ranks))) / (draws + 1)
