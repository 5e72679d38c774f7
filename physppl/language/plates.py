"""Plates around a Dynamics: the positions of their axes in sites, data and likelihood."""

import jax.numpy as jnp


class PlateLayout:
    """Axes of the enclosing plates: leading for vmap, at their dims for the sample statement."""

    def __init__(self, frames, time_dim: int, batch_shape: tuple[int, ...], name: str):
        outer = sorted((f.dim, f.size) for f in frames)  # most negative dim first, as in an array
        self.dims, self.sizes = tuple(d for d, _ in outer), tuple(s for _, s in outer)
        self.time_dim = time_dim
        if batch_shape != self.sizes:
            plates = f"plates of sizes {self.sizes}" if self.sizes else "no plate"
            raise ValueError(
                f"Dynamics({name}): data with leading axes {batch_shape} need as many plates outside; found {plates}. "
                "Write `with numpyro.plate('machine', M): dynamics(Transitions.stack([...]))`."
            )

    def lead(self, value, event_dim: int, own_dims: int):
        """Move the plate axes of a site's value to the front, broadcast to the plates' sizes; the others keep order."""
        value = jnp.asarray(value)
        for dim, size in zip(reversed(self.dims), reversed(self.sizes), strict=True):
            axis = dim - event_dim
            if value.ndim < -axis:  # e.g. conditioned on one value for the whole plate
                value = jnp.broadcast_to(value, (size,) + (1,) * (-axis - 1 - value.ndim) + value.shape)
            elif value.shape[axis] == 1:
                value = jnp.repeat(value, size, axis=axis)
        axes = [value.ndim + dim - event_dim for dim in self.dims]
        value = jnp.moveaxis(value, axes, range(len(axes)))
        while value.ndim > len(axes) + own_dims + event_dim and value.shape[len(axes)] == 1:
            value = jnp.squeeze(value, len(axes))  # a gap that a plate at e.g. dim=-2 leaves on its right
        return value

    def place(self, value, event_dim: int):
        """Move the axes of an array (plates..., N, event...) to the batch shape that the plates prescribe."""
        count = len(self.dims)
        order = sorted(zip((*self.dims, self.time_dim), range(count + 1), strict=True))
        value = jnp.transpose(value, [i for _, i in order] + list(range(count + 1, count + 1 + event_dim)))
        present = [d for d, _ in order]
        gaps = [i for i, d in enumerate(range(present[0], 0)) if d not in present]
        return jnp.expand_dims(value, gaps)
