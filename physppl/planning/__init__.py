"""Planners: from transition functions and an objective to actions."""

from physppl.planning.gradient import GradientShooting
from physppl.planning.icem import ICEM
from physppl.planning.mppi import MPPI
from physppl.planning.multisine import Multisine
from physppl.planning.planner import Planner
from physppl.planning.proposals import Autoregressive, Coloured, Proposal, Spline, White
from physppl.planning.random_policy import RandomPolicy
from physppl.planning.random_shooting import RandomShooting

__all__ = [
    "Autoregressive",
    "Coloured",
    "GradientShooting",
    "ICEM",
    "MPPI",
    "Multisine",
    "Planner",
    "Proposal",
    "RandomPolicy",
    "RandomShooting",
    "Spline",
    "White",
]
