"""Planners: from transition functions and an objective to actions."""

from physppl.planning.gradient import GradientShooting as GradientShooting
from physppl.planning.icem import ICEM as ICEM
from physppl.planning.mppi import MPPI as MPPI
from physppl.planning.multisine import Multisine as Multisine
from physppl.planning.planner import Planner as Planner
from physppl.planning.proposals import Autoregressive as Autoregressive
from physppl.planning.proposals import Coloured as Coloured
from physppl.planning.proposals import Proposal as Proposal
from physppl.planning.proposals import Spline as Spline
from physppl.planning.proposals import White as White
from physppl.planning.random_policy import RandomPolicy as RandomPolicy
from physppl.planning.random_shooting import RandomShooting as RandomShooting
