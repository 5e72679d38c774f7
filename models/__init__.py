"""Machines, one per file: spaces, physics, a default program, the true or nominal parameters, a task.

Each module offers `state`, `action`, `field` (the physics at given parameters), `program` (with priors), `truth`,
`dynamics()`, and, where it makes sense, a task and a simulated `system()`.
"""

from physppl.models import cartpole as cartpole
from physppl.models import gym_pendulum as gym_pendulum
from physppl.models import pendulum as pendulum
