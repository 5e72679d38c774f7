"""Figure of innovations: their course, distribution, autocorrelation, and cross-correlation with the inputs."""

from collections.abc import Sequence
from itertools import cycle

import jax
import numpy as np

from physppl.dynamics import Dynamics
from physppl.evaluation import predictive_scores
from physppl.evaluation.scoring_rules import LEVELS
from physppl.internal.figures import BLUE, GREY, INK, ORANGE, PURPLE, legend, new_figure, styled, words
from physppl.posterior import fit_tests
from physppl.posterior import innovations as source
from physppl.posterior.posterior import Posterior

SHOWN = 5.0  # sds either side of zero; larger errors stand at the rim
DRAWS = 64  # of the posterior, in measurements of coverage
BOUND = 1.96  # sds, of 95 %
LETTER = 0.018  # width of a letter of a part's name, of the panel's


@styled
def innovations(posterior: Posterior, *, horizons: Sequence[int] = ()):
    """Plot the standardised one-step errors of a fit, a row of panels for each coordinate or sensor.

    Their course with 95 % bounds, one part after the other; their histogram beside the standard normal density; their
    autocorrelation, and their correlation with each input so many rows earlier, with 95 % bounds of independent errors;
    and, if asked, the share of outcomes in predictive intervals so many steps ahead.

    Args:
        horizons: steps ahead at which coverage is measured, e.g. (1, 2, 5, 10, 20); of the fitted data, so that
            intervals are at best a little too wide. None by default: it takes seconds.

    Raises:
        TypeError: for outcomes that are not rows of Gaussian or Student-t values; for horizons of a fleet.
        ValueError: for a horizon that is longer than all data.
    """
    if len(horizons) and not isinstance(posterior.model, Dynamics):
        raise TypeError(
            f"plots.innovations(horizons=...): coverage is measured on forecasts of one Dynamics; got {posterior!r}. "
            "Of a fleet, pass one machine: posterior.machine(0)."
        )
    found = source.innovations(posterior)
    inputs = found.inputs
    widths = [4, 1, 2] + ([2] if inputs is not None else []) + ([2] if len(horizons) else [])
    figure = new_figure(2.6 + 1.75 * (len(widths) - 1) + 1.5, 1.75 * len(found.names) + 0.7)
    panels = figure.subplots(len(found.names), len(widths), sharex="col", width_ratios=widths, squeeze=False)
    lags = min(fit_tests.LAGS, found.errors.shape[1] - 1)
    correlations, pairs = fit_tests.autocorrelation(found, lags)
    for i, name in enumerate(found.names):
        course, histogram, auto = panels[i, :3]
        _course(course, found, i, named=i == 0)
        course.set_ylabel(f"{name.replace('_', ' ')} [sd]")
        _histogram(histogram, found.errors[..., i][found.seen[..., i]])
        if len(correlations):
            _stems(auto, np.arange(1, len(correlations) + 1), correlations[:, i], pairs[:, i], BLUE)
        if inputs is not None:
            for a, (label, colour) in enumerate(zip(found.input_names, cycle((BLUE, ORANGE, PURPLE)), strict=False)):
                at = range(found.lag, found.lag + lags)
                values, counts = fit_tests.cross_correlation(found, inputs[..., a], at)
                _stems(
                    panels[i, 3],
                    np.arange(found.lag, found.lag + lags) + 0.2 * a,
                    values[:, i],
                    counts[:, i],
                    colour,
                    words(label),
                )
    titles = ["innovations", "density", "autocorrelation"]
    if inputs is not None:
        titles.append(f"correlation with {words(found.input_names[0]) if len(found.input_names) == 1 else 'inputs'}")
    if len(horizons):
        _coverage(panels[:, -1], posterior, horizons)
        panels[-1, -1].set_xlabel("steps ahead")
        titles.append("coverage")
    for axis, title in zip(panels[0], titles, strict=False):
        axis.set_title(title, pad=8 if len(found.parts) == 1 else 13)  # names of parts stand below
    rows = f"{found.row}s"
    panels[-1, 0].set_xlabel(rows if found.times is None else "time [s]")
    panels[-1, 2].set_xlabel(f"lag [{rows}]")
    if inputs is not None:
        panels[-1, 3].set_xlabel(f"lag [{rows}]")
        if len(found.input_names) > 1:
            return legend(figure, [panels[0, 3]])
    return figure


def _course(axis, found: source.Innovations, i: int, named: bool) -> None:
    """Plot one part after the other; with `named`, their names above where there is room."""
    begin, begins = 0.0, []
    for part in range(len(found.errors)):
        seen = found.seen[part, :, i]
        if not seen.any():
            continue
        clock = np.arange(len(seen), dtype=float) if found.times is None else found.times[part]
        clock = clock - clock[seen][0] + begin
        begins.append((begin, found.parts[part]))
        values = np.clip(found.errors[part, :, i], -SHOWN, SHOWN)
        axis.plot(clock[seen], values[seen], ".", ms=2.2, mew=0, color=BLUE, alpha=0.7)
        far = seen & (np.abs(found.errors[part, :, i]) > SHOWN - 1)
        axis.plot(clock[far], values[far], "o", ms=4, mfc="none", mec=ORANGE)
        begin = clock[seen][-1]
        if part + 1 < len(found.errors):
            axis.axvline(begin, color=GREY, lw=0.6)
    axis.axhspan(-BOUND, BOUND, color=GREY, alpha=0.15, lw=0)
    axis.set(ylim=(-SHOWN - 0.2, SHOWN + 0.2), xlim=(0, max(begin, 1e-9)))
    ends = [at for at, _ in begins[1:]] + [begin]
    for (at, name), end in zip(begins if named and len(begins) > 1 else [], ends, strict=False):
        if (end - at) > LETTER * (len(name) + 1) * begin:
            above = axis.get_xaxis_transform()
            axis.annotate(name, (at, 1.0), (2, 1), xycoords=above, textcoords="offset points", fontsize=7, color=INK)


def _histogram(axis, values: np.ndarray) -> None:
    grid = np.linspace(-SHOWN, SHOWN, 200)
    edges = np.linspace(-SHOWN, SHOWN, 41)
    shown = np.clip(values, -SHOWN, SHOWN)
    axis.hist(shown, edges, density=True, orientation="horizontal", color=BLUE, alpha=0.55)
    axis.plot(np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), grid, color=ORANGE, lw=1.2)
    axis.set(xticks=[], yticks=[], ylim=(-SHOWN - 0.2, SHOWN + 0.2))


def _coverage(axes, posterior: Posterior, horizons: Sequence[int]) -> None:
    """Share of outcomes in the central 50 and 90 % intervals, beside both levels."""
    inside = []
    for steps in horizons:
        scores = predictive_scores.evaluate(jax.random.key(0), posterior, posterior.data, steps, DRAWS)
        if scores is None:
            raise ValueError(f"plots.innovations(horizons=...): no unbroken window of {steps} steps in the data.")
        inside.append(scores.coverage)
    for i, axis in enumerate(axes):
        for level, colour in ((0.5, BLUE), (0.9, ORANGE)):
            axis.axhline(level, color=colour, lw=0.8, ls=":")
            axis.plot(horizons, np.stack(inside)[:, LEVELS.index(level), i], "o-", ms=3, lw=1, color=colour)
        axis.set(ylim=(0, 1.02), yticks=(0.5, 0.9), yticklabels=("50 %", "90 %"))


def _stems(axis, lags, values, pairs, colour: str, label: str | None = None) -> None:
    bounds = BOUND / np.sqrt(np.maximum(pairs, 1))
    axis.fill_between(lags, -bounds, bounds, color=GREY, alpha=0.2, lw=0)
    axis.vlines(lags, 0, values, color=colour, lw=1.4, label=label)
    axis.axhline(0, color=GREY, lw=0.8)
    reach = max(0.3, float(np.abs(values).max()) * 1.15, *np.abs(axis.get_ylim()))
    axis.set_ylim(-reach, reach)
