"""Demo of a Furuta pendulum: swung up at 100 Hz, with friction that its program lacks."""

import physppl as pp
from physppl import plots
from physppl.cli.acting import NOISE, machine
from physppl.cli.learning import Learning
from physppl.models import furuta
from physppl.planning import ICEM

DT = 0.01  # s
FRICTION = {"arm_coulomb": 1e-3, "arm_breakaway": 1e-3, "pendulum_coulomb": 1e-4, "pendulum_breakaway": 1e-4}  # N m
KNOWN = {"arm_coulomb": 0.0, "pendulum_coulomb": 0.0, "cable_stiffness": 0.0, "cable_offset": 0.0}
RESTART = 32  # steps from one restart of the predictions to the next
FILES = {"fan.png": "its predictions of an episode of the oracle, not used in the fit"}


def learning() -> Learning:
    """Swing-up of the Furuta pendulum."""
    volts = furuta.RESISTANCE / furuta.MOTOR_CONSTANT  # per N m
    standstill = FRICTION["arm_coulomb"] + FRICTION["arm_breakaway"]
    opening = (
        f"Learn to swing up a simulated Furuta pendulum, a step every {1000 * DT:g} ms, readings with noise of "
        f"{NOISE:g} rad and rad/s.",
        f"Dry friction brakes its arm with {FRICTION['arm_coulomb']:g} N·m, near standstill {standstill:g}: "
        f"{FRICTION['arm_coulomb'] * volts:.1f} and {standstill * volts:.1f} V of the motor's 6,",
        f"and its pendulum with {FRICTION['pendulum_coulomb']:g} N·m, near standstill twice that. "
        "The program has viscous friction alone:",
        "dry friction lies outside its prior. The first episode acts from the prior.",
    )
    problem = machine("furuta", DT, truth=FRICTION, hold=KNOWN)
    return Learning(problem, opening, ICEM(horizon=40), _fan, "fan.png")


def _fan(key, run: pp.Run, system: pp.SimulatedSystem, oracle: pp.Episode):
    del system
    title = "Open-loop predictions of an episode of the oracle, not used in the fit"
    return plots.fan(key, run.posterior, oracle.states, oracle.actions, restart=RESTART, title=title)
