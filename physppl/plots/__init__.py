"""Figures and animations of posteriors, predictions and loops. Matplotlib is imported when one is drawn.

Every function returns a `matplotlib.figure.Figure` without a window; save it with `figure.savefig(path)`.
Those that begin with `animate` write a GIF and return its path.
"""

from physppl.plots.frequency import bode
from physppl.plots.innovations import innovations
from physppl.plots.loops import learning_curves, returns
from physppl.plots.machines import animate_cartpole, animate_furuta, animate_pendulum, animate_two_link
from physppl.plots.posterior import fan, parameters, phase_portrait
from physppl.plots.recordings import prediction, residuals

__all__ = [
    "animate_cartpole",
    "animate_furuta",
    "animate_pendulum",
    "animate_two_link",
    "bode",
    "fan",
    "innovations",
    "learning_curves",
    "parameters",
    "phase_portrait",
    "prediction",
    "residuals",
    "returns",
]
