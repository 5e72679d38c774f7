"""The wrong inputs by kind, in the order of the page that shows them."""

from mistakes import acting, binding, commands, files, fits, programs, sites, trajectories, transitions
from mistakes.entry import Mistake

KINDS: dict[str, list[Mistake]] = {
    "Programs": programs.MISTAKES,
    "Parameters, priors and noises": sites.MISTAKES,
    "Spaces and Dynamics": binding.MISTAKES,
    "Transitions": transitions.MISTAKES,
    "Recordings": trajectories.MISTAKES,
    "Files and tables": files.MISTAKES,
    "Fits and posteriors": fits.MISTAKES,
    "Planners, tasks and loops": acting.MISTAKES,
    "Command line": commands.MISTAKES,
}
ALL = {mistake.title: mistake for mistakes in KINDS.values() for mistake in mistakes}
