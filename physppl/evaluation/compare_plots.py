"""Figure of a comparison of posteriors."""

from itertools import cycle

import numpy as np

from physppl.internal.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, legend, new_figure, styled, words

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, INK)
MARKERS = "osD^v"


@styled
def comparison(result):
    """Figure of error over the horizon, coverage of one-step intervals, and parameters relative to the reference.

    Args:
        result: a `physppl.evaluation.compare.Comparison`.

    Raises:
        ValueError: where it holds neither predictions nor distances.
    """
    data = result.dataset
    looks = dict(zip(data.posterior.values, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
    panels = [_error, _coverage] * ("rmse" in data) + [_distance] * ("shift" in data)
    if not panels:
        raise ValueError("a comparison without test_data and without reference has no figure; print its table.")
    sites = data.sizes.get("site", 0)
    figure = new_figure(3.1 * len(panels) + 0.3, max(2.9, 0.6 + 0.24 * sites * max(len(looks) - 1, 1)))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for draw, axis in zip(panels, axes, strict=True):
        draw(axis, data, looks)
    return legend(figure, axes)


def _error(axis, data, looks) -> None:
    seen = data.isel(horizon=data.outcomes.values > 0)
    rmse = np.sqrt((seen.rmse**2).mean("coordinate", skipna=False))
    for name, (colour, marker) in looks.items():
        if np.isfinite(values := rmse.sel(posterior=name)).any():
            axis.plot(seen.time, values, color=colour, marker=marker, ms=4, label=name, alpha=0.85)
    if seen.sizes["horizon"] > 1:
        axis.set_xscale("log")
        axis.set_xticks(seen.time.values, [f"{t:.3g}" for t in seen.time.values])
        axis.minorticks_off()
    axis.set(xlabel="horizon [s]", ylabel="RMSE [scale]", title="open-loop error")
    axis.set_ylim(0, None)


def _coverage(axis, data, looks) -> None:
    """Plot coverage minus nominal; the band is pointwise, and too narrow where coordinates are dependent."""
    inside = data.coverage.isel(horizon=0).mean("coordinate", skipna=False)
    levels = data.level.values
    count = float(data.outcomes[0]) * data.sizes["coordinate"]
    error = 1.96 * np.sqrt(levels * (1 - levels) / count)
    axis.fill_between(100 * levels, -100 * error, 100 * error, color=GREY, alpha=0.25, lw=0, label="chance, 95 %")
    axis.axhline(0, color=GREY, lw=0.8)
    for name, (colour, marker) in looks.items():
        if np.isfinite(values := inside.sel(posterior=name)).any():
            axis.plot(100 * levels, 100 * (values - levels), color=colour, marker=marker, ms=4, label=name, alpha=0.85)
    axis.set_xticks(100 * levels)
    axis.set(xlabel="interval [%]", ylabel="inside, minus nominal [%]", title="calibration, one step")


def _distance(axis, data, looks) -> None:
    """Plot mean and sd of each posterior, in the reference's sds about its mean."""
    names, others = data.site.values, [n for n in looks if n != data.attrs["reference"]]
    axis.axvspan(-1, 1, color=GREY, alpha=0.25, lw=0, label=f"{data.attrs['reference']} ± sd")
    axis.axvline(0, color=GREY, lw=0.8)
    for i, name in enumerate(others):
        colour, marker = looks[name]
        row = data.sel(posterior=name)
        rows = np.arange(len(names)) + 0.6 * ((i + 0.5) / len(others) - 0.5)
        axis.errorbar(
            row["shift"], rows, xerr=row.sd_ratio, fmt=marker, ms=4, color=colour, lw=1.3, capsize=2, label=name
        )
    axis.set_yticks(np.arange(len(names)), [words(str(n)) for n in names])
    axis.set(xlabel=f"mean ± sd, in sds of {data.attrs['reference']}", title="parameters")
    axis.set_ylim(len(names) - 0.4, -0.6)
