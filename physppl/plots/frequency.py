"""Figure of a frequency response: magnitude and phase."""

import numpy as np

from physppl.evaluation.frequency_response import FrequencyResponse
from physppl.internal.figures import BLUE, ORANGE, legend, new_figure, styled, words
from physppl.internal.units import label

BAND = (0.05, 0.95)  # quantiles of the draws
TURN = (15.0, 45.0, 90.0, 180.0, 360.0)  # degrees between ticks of the phase
TICKS = 6  # at most


@styled
def bode(found: FrequencyResponse, truth: FrequencyResponse | None = None):
    """Plot magnitude and phase over the frequency (Bode): median and pointwise 90 % band of the draws.

    Args:
        found: from `physppl.frequency_response`.
        truth: another one to compare with, e.g. of the simulated system; its first draw is shown.
    """
    figure, centre = new_figure(5.6, 4.6), "median of the draws" if len(found.response) > 1 else "response"
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 1.0])
    for axis, quantity in ((above, "magnitude"), (below, "phase")):
        values = getattr(found, quantity)
        if len(values) > 1:
            low, high = np.quantile(values, BAND, axis=0)
            axis.fill_between(found.frequencies, low, high, color=BLUE, alpha=0.28, lw=0, label="90 %")
        axis.plot(found.frequencies, np.median(values, axis=0), color=BLUE, label=centre)
        if truth is not None:
            curve = getattr(truth, quantity)[0]
            axis.plot(truth.frequencies, curve, color=ORANGE, ls=(0, (4, 2)), lw=1.2, label="truth")
    above.set(xscale="log", yscale="log", ylabel=label("magnitude", found.unit))
    above.set_title(f"{words(found.input)} to {words(found.output)}")
    below.set(xlabel="frequency [Hz]", ylabel="phase [°]")
    below.set_xlim(found.frequencies[0], found.frequencies[-1])
    _in_turns(below)
    figure.align_ylabels([above, below])
    return legend(figure, [above])


def _in_turns(axis) -> None:
    """Ticks of the phase at simple fractions, or multiples, of a turn."""
    from matplotlib.ticker import MultipleLocator

    low, high = axis.get_ylim()
    step = next((s for s in TURN if (high - low) / s <= TICKS), None)
    axis.yaxis.set_major_locator(MultipleLocator(step or 360.0 * np.ceil((high - low) / 360.0 / TICKS)))
