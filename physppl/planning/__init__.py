"""Planners: from transition functions and an objective to actions."""

from physppl.planning.icem import ICEM as ICEM
from physppl.planning.planner import Planner as Planner
from physppl.planning.random_policy import RandomPolicy as RandomPolicy
from physppl.planning.random_shooting import RandomShooting as RandomShooting
