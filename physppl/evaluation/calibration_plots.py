"""Picture of a calibration."""

import numpy as np

from physppl.evaluation import rank_tests
from physppl.internal.figures import BLUE, GREY, INK, ORANGE, legend, new_figure, styled

COVERAGES = np.linspace(0.02, 0.98, 49)


@styled
def calibration(found):
    """How far the ranks' distribution strays from uniform, and how far coverage strays from nominal, with their bands.

    Ranks that leave their band are rejected. Of coverage only the 90 % interval, at the dotted line, is tested: the
    band holds at each interval alone, and a line that leaves it elsewhere is rejected by nothing. Above zero intervals
    are too wide.
    """
    figure = new_figure(6.8, 3.0)
    ranks, coverage = figure.subplots(1, 2)
    values = found.values
    count, at = len(values), np.linspace(0, 1, 201)
    bad = {row["name"] for row in found.table if row["rejected"]}
    stray = rank_tests.ecdf_band(count, found.each)
    ranks.fill_between([0, 1], -stray, stray, color=GREY, alpha=0.2, lw=0)
    bands = np.array([rank_tests.coverage_band(count, level, found.each) for level in COVERAGES]) - COVERAGES[:, None]
    label = f"accepted, family-wise {found.level:g}"
    coverage.fill_between(100 * COVERAGES, *(100 * bands.T), color=GREY, alpha=0.2, lw=0, label=label)
    coverage.axvline(100 * rank_tests.COVERED, color=INK, lw=0.7, ls=":", label="tested interval")
    for axis in (ranks, coverage):
        axis.axhline(0, color=INK, lw=0.7)
    for name, own in zip(found.names, values.T, strict=True):
        colour, said = (ORANGE, "rejected") if name in bad else (BLUE, "not rejected")
        style = {"color": colour, "alpha": 0.75, "lw": 1.1, "label": said}
        ranks.plot(at, np.searchsorted(np.sort(own), at, side="right") / count - at, **style)
        covered = np.array([rank_tests.inside(own, level) for level in COVERAGES]) / count
        coverage.plot(100 * COVERAGES, 100 * (covered - COVERAGES), **style)
    ranks.set(xlabel="rank of the truth, share of the draws", ylabel="empirical minus uniform", title="Ranks")
    coverage.set(xlabel="central interval [%]", ylabel="covered minus nominal [%]", title="Coverage")
    return legend(figure, [ranks, coverage])
