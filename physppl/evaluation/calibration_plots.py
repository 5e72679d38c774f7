"""Figure of a calibration."""

import numpy as np

from physppl.evaluation import rank_tests
from physppl.internal.figures import BLUE, GREY, INK, ORANGE, legend, new_figure, styled

COVERAGES = np.linspace(0.02, 0.98, 49)


@styled
def calibration(result):
    """Deviation of the ranks' distribution from uniform and of coverage from nominal, with acceptance bands.

    Ranks that leave their band are rejected. Coverage is tested only at the 90 % interval, the dotted line: the band
    holds pointwise, and a line that leaves it elsewhere is no rejection. Above zero intervals are too wide.
    """
    figure = new_figure(6.8, 3.0)
    ranks, coverage = figure.subplots(1, 2)
    values = result.values
    count, grid = len(values), np.linspace(0, 1, 201)
    bad = {row["name"] for row in result.table if row["rejected"]}
    band = rank_tests.ecdf_band(count, result.each)
    ranks.fill_between([0, 1], -band, band, color=GREY, alpha=0.2, lw=0)
    bands = np.array([rank_tests.coverage_band(count, level, result.each) for level in COVERAGES]) - COVERAGES[:, None]
    label = f"accepted, family-wise {result.level:g}"
    coverage.fill_between(100 * COVERAGES, *(100 * bands.T), color=GREY, alpha=0.2, lw=0, label=label)
    coverage.axvline(100 * rank_tests.COVERED, color=INK, lw=0.7, ls=":", label="tested interval")
    for axis in (ranks, coverage):
        axis.axhline(0, color=INK, lw=0.7)
    for name, quantity in zip(result.names, values.T, strict=True):
        colour, label = (ORANGE, "rejected") if name in bad else (BLUE, "not rejected")
        style = {"color": colour, "alpha": 0.75, "lw": 1.1, "label": label}
        ranks.plot(grid, np.searchsorted(np.sort(quantity), grid, side="right") / count - grid, **style)
        covered = np.array([rank_tests.inside(quantity, level) for level in COVERAGES]) / count
        coverage.plot(100 * COVERAGES, 100 * (covered - COVERAGES), **style)
    ranks.set(xlabel="rank of the truth, share of the draws", ylabel="empirical minus uniform", title="Ranks")
    coverage.set(xlabel="central interval [%]", ylabel="covered minus nominal [%]", title="Coverage")
    return legend(figure, [ranks, coverage])
