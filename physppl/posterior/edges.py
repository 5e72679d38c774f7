"""Posteriors at the edge of their prior."""

import math
from typing import NamedTuple

import numpy as np

from physppl.language.sites import LogInterval

TAIL = 0.0228  # of the prior's mass: two sds of the Gaussian in unconstrained space
NEAR = 4.6  # logit of the last one per cent between two bounds: a machine is rarely built at a guess's end
# A likelihood that pushes against a bound leaves the logit z a posterior sd of 1 / sqrt(1 + |z|) prior sds, .2 at
# |z| = 24; a narrower posterior is held by the data.
PUSHED = 0.1
# A prior that is flat at its lower bound has 5 % of its mass below a tenth of its median; one with less than half of
# that vanishes there and speaks against small values. A noise or a friction of nearly zero is no edge otherwise.
VANISHING = 0.025


class Bounds(NamedTuple):
    """Both bounds of a site's support; `log` where its unconstrained coordinate is that of the logarithm."""

    low: float
    high: float
    log: bool = False

    def unconstrained(self, values: np.ndarray) -> np.ndarray:
        """logit of the way from low to high, finite also where rounding puts a value on a bound."""
        scale = np.log if self.log else np.asarray
        way = (scale(values) - scale(self.low)) / (scale(self.high) - scale(self.low))
        way = np.clip(way, np.finfo(float).eps, 1 - np.finfo(float).eps)
        return np.log(way / (1 - way))


def at_edge(draws: np.ndarray, prior: np.ndarray, bounds: Bounds | None) -> bool:
    """True if the posterior lies where its prior has almost no mass; between two bounds, if one of them holds it.

    Args:
        draws, prior: posterior and prior draws (S,).
        bounds: of the support, or None. A bound at zero is no edge.
    """
    if bounds is None:
        limit, open_below = math.inf, prior.min() >= 0 and np.mean(prior < 0.1 * np.median(prior)) > VANISHING
    else:
        draws, prior = bounds.unconstrained(draws), bounds.unconstrained(prior)
        if draws.std() < PUSHED * prior.std():
            return False
        limit, open_below = NEAR, bounds.low == 0  # a friction may be almost zero; nothing lies beyond
    median, (low, high) = np.median(draws), np.quantile(prior, [TAIL, 1 - TAIL])
    return bool((median < max(low, -limit) and not open_below) or median > min(high, limit))


def bounds_of(support) -> Bounds | None:
    """Both ends of an interval's support, the same for all entries."""
    support = getattr(support, "base_constraint", support)
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None or high is None or np.size(low) != 1 or np.size(high) != 1:
        return None
    return Bounds(np.asarray(low).item(), np.asarray(high).item(), isinstance(support, LogInterval))
