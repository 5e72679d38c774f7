"""Physical dynamics as NumPyro programs: from recordings to calibrated posteriors to controlled machines."""

from physppl.control.actuators import Actuator
from physppl.control.agent import Actor
from physppl.control.episodes import Episode, episode
from physppl.control.loops import Run, psal, psrl
from physppl.control.systems import HostStep, HostSystem, SimulatedSystem, System
from physppl.data.input_measures import Box, JitteredData, Measure, Mixture, Visited
from physppl.data.spaces import ActionSpace, Angle, Bounded, Real, StateSpace
from physppl.data.trajectories import Trajectories
from physppl.data.transitions import Transitions
from physppl.dynamics import Dynamics
from physppl.evaluation.calibration import Calibration, calibrate
from physppl.evaluation.compare import Comparison, compare
from physppl.evaluation.cross_validation import leave_one_recording_out
from physppl.evaluation.frequency_response import FrequencyResponse, frequency_response
from physppl.internal.errors import FitError, PhyspplWarning, Status
from physppl.language.adaptive import Adaptive
from physppl.language.integrate import RK4, Step, rollout, rollouts
from physppl.language.residual import residual, step_residual
from physppl.language.sites import physical
from physppl.language.transition import Transition
from physppl.planning.acquisition import Acquisition, PosteriorMean, Thompson, TrajectorySampling
from physppl.planning.objectives import InformationGain, Objective, TaskReward, Terminal
from physppl.planning.tasks import Limits, Task
from physppl.posterior.backend import Backend, fit
from physppl.posterior.diagnostics import check
from physppl.posterior.identifiability import Identifiability, identifiability
from physppl.posterior.initial_states import InitialStates, initial_states
from physppl.posterior.posterior import MachinePosterior, Posterior
from physppl.posterior.saving import load
from physppl.posterior.verdict import Check

__all__ = [
    "Acquisition",
    "ActionSpace",
    "Actor",
    "Actuator",
    "Adaptive",
    "Angle",
    "Backend",
    "Bounded",
    "Box",
    "Calibration",
    "Check",
    "Comparison",
    "Dynamics",
    "Episode",
    "FitError",
    "FrequencyResponse",
    "HostStep",
    "HostSystem",
    "Identifiability",
    "InformationGain",
    "InitialStates",
    "JitteredData",
    "Limits",
    "MachinePosterior",
    "Measure",
    "Mixture",
    "Objective",
    "PhyspplWarning",
    "Posterior",
    "PosteriorMean",
    "RK4",
    "Real",
    "Run",
    "SimulatedSystem",
    "StateSpace",
    "Status",
    "Step",
    "System",
    "Task",
    "TaskReward",
    "Terminal",
    "Thompson",
    "Trajectories",
    "TrajectorySampling",
    "Transition",
    "Transitions",
    "Visited",
    "calibrate",
    "check",
    "compare",
    "episode",
    "fit",
    "frequency_response",
    "identifiability",
    "initial_states",
    "leave_one_recording_out",
    "load",
    "physical",
    "psal",
    "psrl",
    "residual",
    "rollout",
    "rollouts",
    "step_residual",
]
