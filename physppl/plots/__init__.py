"""Figures and animations of posteriors, predictions and loops. Matplotlib is imported when one is drawn.

Every function returns a `matplotlib.figure.Figure` without a window; save it with `figure.savefig(path)`.
Those that begin with `animate` write a GIF and return its path.
"""

from physppl.plots.frequency import frequency_response as frequency_response
from physppl.plots.innovations import innovations as innovations
from physppl.plots.loops import learning_curves as learning_curves
from physppl.plots.loops import returns as returns
from physppl.plots.machines import animate_cartpole as animate_cartpole
from physppl.plots.machines import animate_furuta as animate_furuta
from physppl.plots.machines import animate_pendulum as animate_pendulum
from physppl.plots.machines import animate_two_link as animate_two_link
from physppl.plots.posterior import fan as fan
from physppl.plots.posterior import parameters as parameters
from physppl.plots.posterior import phase_portrait as phase_portrait
from physppl.plots.recordings import prediction as prediction
from physppl.plots.recordings import residuals as residuals
