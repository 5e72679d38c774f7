"""Motion of two coordinates that a mass matrix couples."""

import jax.numpy as jnp


def coupled_rates(velocity_1, velocity_2, m11, m12, m22, force_1, force_2):
    """Rates (4,) of two positions and their velocities: [[m11, m12], [m12, m22]] accelerations = forces."""
    determinant = m11 * m22 - m12**2
    turn_1, turn_2 = m22 * force_1 - m12 * force_2, m11 * force_2 - m12 * force_1
    return jnp.stack([velocity_1, velocity_2, turn_1 / determinant, turn_2 / determinant])
