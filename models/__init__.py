"""Machines, one per file: spaces, physics, a default program, the true or nominal parameters, a task.

Each module offers `state`, `action`, `field` (the physics at given parameters), `program` (with priors), `truth` (of a
simulated machine) or `nominal` (a real one's documented values), `dynamics()`, and, where it makes sense, a task, a
simulated `system()`, and `program_with(...)`, the program with some parameters fixed.
"""

from physppl.models import (
    cartpole,
    double_pendulum,
    furuta,
    gym_pendulum,
    inverted_pendulum,
    pendulum,
    quanser_cartpole,
    simple_pendulum,
    two_link,
)

__all__ = [
    "cartpole",
    "double_pendulum",
    "furuta",
    "gym_pendulum",
    "inverted_pendulum",
    "pendulum",
    "quanser_cartpole",
    "simple_pendulum",
    "two_link",
]
