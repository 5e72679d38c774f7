"""Machines, one per file: spaces, physics, a default program, the true or nominal parameters, a task.

Each module offers `state`, `action`, `field` (the physics at given parameters), `program` (with priors), `truth` (of a
simulated machine) or `nominal` (a real one's documented values), `dynamics()`, and, where it makes sense, a task, a
simulated `system()`, and `program_with(...)`, the program with some parameters fixed.
"""

from physppl.models import cartpole as cartpole
from physppl.models import double_pendulum as double_pendulum
from physppl.models import furuta as furuta
from physppl.models import gym_pendulum as gym_pendulum
from physppl.models import inverted_pendulum as inverted_pendulum
from physppl.models import pendulum as pendulum
from physppl.models import quanser_cartpole as quanser_cartpole
from physppl.models import simple_pendulum as simple_pendulum
from physppl.models import two_link as two_link
