"""The likelihood of recordings: x[k+1] = F(x[k], a[k]) + process noise, y[k] = observe(x[k]) + measurement noise.

The states are latent and filtered out (`physppl.dynamics.kalman`): the model keeps few sites, and the predictive
density of each reading given all earlier ones is one term of the likelihood.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.primitives import _PYRO_STACK

from physppl.data.checks import check_trajectories
from physppl.data.spaces import StateSpace
from physppl.data.trajectories import Trajectories
from physppl.dynamics.first_state import most_probable
from physppl.dynamics.instruments import RecordedNormal
from physppl.dynamics.kalman import Filtered, Samples, SampleStep, kalman_filter
from physppl.dynamics.likelihood import Dependence, Likelihood
from physppl.dynamics.sensors import DELAY, OFFSETS, Sensing, lagged, of_program
from physppl.language.integrate import Step, StepResidual, stepper
from physppl.language.program import Record, rebuild, refuse_unknown


class SiteValues(NamedTuple):
    """One recording and the values of all sites for it; with a leading axis, all recordings."""

    program: dict[str, Array]
    sensing: dict[str, Array]  # sites of noises, sensors and inputs
    observations: Array
    actions: Array
    before: Array
    times: Array
    seen: Array
    start: tuple[Array, Array]
    segments: Array  # (N,) number of dt whose process noise enters after each sample


class FilteredReadings(Likelihood[Trajectories]):
    """Likelihood of Trajectories: the site `observation`, each reading given those before it, states filtered out."""

    site = "observation"
    axis = "sensor"
    dependence = Dependence.RECORDINGS

    def space(self, dynamics) -> StateSpace:
        return dynamics.sensing.space

    def check(self, dynamics, data: Trajectories) -> None:
        check_trajectories(data, dynamics.sensing.space, dynamics, dynamics.owner)

    def declare(self, dynamics, record: Record, data: Trajectories) -> None:
        """Sample the sites of the sensors, of the inputs, and of the variation between recordings."""
        sensing: Sensing = dynamics.sensing
        for noise in sensing.noises:
            if noise is not sensing.variation:
                noise.sample()
        if isinstance(sensing.delay, dist.Distribution):
            numpyro.sample(DELAY, sensing.delay)
        if sensing.variation is not None:
            size = sum(_unconstrained(record, name).size for name in record.supports if of_program(name))
            count = data.rows().batch_shape[0]
            sensing.variation.sample(size)
            numpyro.sample(OFFSETS, dist.Normal(0.0, 1.0).expand((count, size)).to_event(2))

    def observe(self, dynamics, data: Trajectories) -> Any:
        rows = data.rows()
        for handler in _PYRO_STACK:
            if isinstance(handler, numpyro.plate):
                raise NotImplementedError(
                    f"{dynamics.owner}: Trajectories cannot stand in a plate, here {handler.name!r}. Stack the "
                    "recordings, and give `variation` if the machine differs from one to the next."
                )
        record = dynamics.declare(rows)
        names = record.names | {self.site, "recording", "sample"}  # NumPyro's samplers substitute plates as well
        refuse_unknown(dynamics, names, dynamics.owner)
        values = _site_values(dynamics, record, rows)
        if rows.observations is None:
            key: Any = numpyro.prng_key()
            keys = jax.random.split(key, rows.batch_shape[0])
            readings = jax.vmap(lambda key, r: _simulate(dynamics, key, r, rows))(keys, values)
            return numpyro.deterministic(self.site, readings)
        results = jax.vmap(lambda r: _filter(dynamics, r, rows))(values)
        with numpyro.plate("recording", rows.batch_shape[0], dim=-2), numpyro.plate("sample", len(rows), dim=-1):
            likelihood = _predictive(dynamics.sensing, values.sensing, results).mask(values.seen).to_event(1)
            return numpyro.sample(self.site, likelihood.mask(rows.valid), obs=values.observations)


def _predictive(sensing: Sensing, sites: Mapping[str, Array], results: Filtered) -> dist.Distribution:
    """Predictive distribution of each reading given the readings before it.

    The error is a Gaussian one, from the uncertain state, plus the sensor's Student-t of scale s and df degrees of
    freedom, whose tails are heavier: with them outliers would be explained as process noise. For S the `spread`, S^2
    = state variance + s^2, the degrees of freedom 2 + (df - 2) S^2 / s^2 give the Student-t the variance of the sum.
    """
    if sensing.instrument is not None:
        return RecordedNormal(results.expected, results.spread, sensing.instrument)
    if sensing.df is None:
        return dist.Normal(results.expected, results.spread)
    sensor_sd = jnp.broadcast_to(sensing.measurement.value(sites), (len(results.spread), len(sensing.space)))
    share = (sensor_sd[:, None] / results.spread) ** 2
    return dist.StudentT(2 + (sensing.df - 2) / share, results.expected, results.spread)


def filtered(dynamics, sites: Mapping[str, Array], data: Trajectories) -> Filtered:
    """Filter each recording, (R, N, ...), at given values of the sites that `sites(data)` names."""
    rows = data.rows()
    with handlers.substitute(data=dict(sites)):
        record = dynamics.declare(rows)
    return jax.vmap(lambda r: _filter(dynamics, r, rows))(_site_values(dynamics, record, rows))


def _site_values(dynamics, record: Record, rows: Trajectories) -> SiteValues:
    """Recordings and the values of all sites for each, from one run of the model."""
    sensing, count = dynamics.sensing, rows.batch_shape[0]
    program = {k: v for k, v in record.values.items() if of_program(k)}
    noises = {k: v for k, v in record.values.items() if not of_program(k) and k != OFFSETS}
    program, noises = jax.tree.map(lambda v: jnp.broadcast_to(v, (count, *jnp.shape(v))), (program, noises))
    if sensing.variation is not None:
        if len(record.values[OFFSETS]) != count:
            raise ValueError(
                f"{dynamics.owner}: {OFFSETS} are those of {len(record.values[OFFSETS])} recordings, the data "
                f"hold {count}. New recordings have offsets of their own: leave {OFFSETS} out of the samples, and they "
                "are drawn anew."
            )
        shifts = sensing.variation.value(record.values) * record.values[OFFSETS]
        program = jax.vmap(lambda shift: _shifted(record, shift))(shifts)
    as_float = partial(jnp.asarray, dtype=float)
    shape = (count, len(rows), len(sensing.space))
    seen, readings = jnp.broadcast_to(jnp.asarray(rows.valid)[..., None], shape), jnp.zeros(shape)
    if rows.observations is not None:
        seen, readings = rows.seen, jnp.where(rows.seen, as_float(rows.observations), 0.0)
    start = first_states(dynamics, rows)
    times, size, segment = as_float(rows.times), len(rows), min(rows.segment, len(rows))
    # Process noise enters after the last sample of each segment, with the variance of all its steps, of which each
    # between irregular samples counts as its length over dt: sum of (t[k + 1] - t[k]) / dt over the segment.
    steps = jnp.ones((count, size))
    if not rows.regular:
        steps = jnp.diff(times, append=times[:, -1:] + dynamics.dt) / dynamics.dt
    elapsed = jnp.cumsum(steps, axis=1)
    segment_steps = elapsed - jnp.pad(elapsed, ((0, 0), (segment, 0)))[:, :size]
    segments = jnp.where((jnp.arange(size) + 1) % rows.segment == 0, segment_steps, 0.0)
    inputs = as_float(rows.actions), as_float(rows.before)
    return SiteValues(program, noises, readings, *inputs, times, seen, start, segments)


def _unconstrained(record: Record, name: str) -> Array:
    return jnp.asarray(biject_to(record.supports[name]).inv(record.values[name]))


def _shifted(record: Record, shift) -> dict[str, Array]:
    """The program's values moved by `shift` in unconstrained space."""
    values, start = {k: v for k, v in record.values.items() if of_program(k)}, 0
    for name in values:
        if name in record.supports:
            unconstrained = _unconstrained(record, name)
            moved = unconstrained + shift[start : start + unconstrained.size].reshape(unconstrained.shape)
            values[name] = biject_to(record.supports[name])(moved)
            start += unconstrained.size
    return values


def first_states(dynamics, rows: Trajectories) -> tuple[Array, Array]:
    """Prior mean and sd (R, D) of the first states: `start`, or the scales about the first readings of coordinates."""
    if rows.start is not None:
        mean, sd = (jnp.asarray(x, float) for x in rows.start)
        return mean, sd
    count, sd = rows.batch_shape[0], jnp.asarray(dynamics.state.scale, float)
    mean = jnp.zeros((count, len(sd)))
    if dynamics.sensing.observe is None and rows.observations is not None:
        seen = jnp.asarray(rows.seen)
        readings = jnp.where(seen, jnp.asarray(rows.observations, float), 0.0)
        first = jnp.take_along_axis(readings, jnp.argmax(seen, axis=1)[:, None], axis=1)[:, 0]
        mean = mean.at[:, jnp.array(dynamics.sensing.index)].set(first)
    return mean, jnp.broadcast_to(sd, mean.shape)


def _machine(dynamics, recorded: SiteValues, rows: Trajectories) -> tuple[SampleStep, Samples]:
    """The dynamics over one sample, and the inputs of the filter; of `rows` only what is static is used."""
    sensing: Sensing = dynamics.sensing
    regular = rows.regular
    field = rebuild(dynamics.program, recorded.program, dynamics.owner)
    if not regular and isinstance(field, Step | StepResidual):
        raise ValueError(
            f"{dynamics.owner}: times are irregular, and the program returns a {type(field).__name__}, which "
            "is defined for steps of dt alone. Resample the recording, or pass dt= if only the clock is inexact."
        )

    def over(length):
        return stepper(field, length, dynamics.solver, dynamics.substeps, dynamics.name)

    fixed = over(dynamics.dt)

    def step(t, length, x, u):
        return fixed(t, x, u) if regular else over(length)(t, x, u)

    lengths = jnp.full(len(recorded.times), dynamics.dt)
    if not regular:
        lengths = jnp.concatenate([jnp.diff(recorded.times), jnp.full(1, dynamics.dt)])
    delay = recorded.sensing[DELAY] if DELAY in recorded.sensing else sensing.delay
    inputs = lagged(recorded.actions, delay, recorded.before)
    process = jnp.sqrt(recorded.segments)[:, None] * dynamics.noise.value(recorded.sensing)
    alive = jnp.cumsum(jnp.any(recorded.seen, axis=-1)[::-1])[::-1] > 0
    samples = Samples(
        recorded.times, lengths, recorded.observations, recorded.seen, alive, inputs,
        input_sd(sensing, recorded.sensing, inputs, recorded.segments > 0 if rows.segment > 1 else None), process,
        None if sensing.instrument is None else sensing.instrument.bounds(recorded.observations),
    )  # fmt: skip
    return step, samples


def input_sd(sensing: Sensing, sites: Mapping[str, Any], inputs: Array, ends: Array | None = None) -> Array | None:
    """Sd (..., N, A) of the error of inputs as they arrive: a fraction of their size and of their last change.

    Args:
        ends: (N,) True for the last sample of each segment, where the errors of its inputs enter together, as its
            process noise does; by default all.
    """
    if sensing.gain is None and sensing.timing is None:
        return None
    variance = jnp.zeros_like(inputs)
    if sensing.gain is not None:
        variance = variance + (sensing.gain.value(sites) * inputs) ** 2
    if sensing.timing is not None:
        change = jnp.diff(inputs, axis=-2, prepend=inputs[..., :1, :])
        variance = variance + (sensing.timing.value(sites) * change) ** 2
    if ends is not None:
        total, at_end = jnp.cumsum(variance, axis=-2), ends[..., None]
        entered = jax.lax.cummax(jnp.where(at_end, total, 0.0), axis=variance.ndim - 2)
        variance = jnp.where(at_end, total - jnp.concatenate([0 * entered[..., :1, :], entered[..., :-1, :]], -2), 0.0)
    positive = variance > 0  # the square root has no derivative at zero
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def _filter(dynamics, recorded: SiteValues, rows: Trajectories) -> Filtered:
    step, samples = _machine(dynamics, recorded, rows)
    sensing: Sensing = dynamics.sensing
    sensor_sd = sensing.measurement.value(recorded.sensing)
    start, turns = recorded.start, tuple(map(bool, sensing.space.is_angle))
    point = None
    if sensing.observe is not None:
        first = samples.observations[0], samples.seen[0]
        point = most_probable(sensing.read, sensor_sd, *start, *first, sensing.space)
    return kalman_filter(step, sensing.read, sensor_sd, *start, samples, sensing.df, turns, point)


def _simulate(dynamics, key, recorded: SiteValues, rows: Trajectories) -> Array:
    """Simulated readings (N, d) from a first state drawn from `start`."""
    step, samples = _machine(dynamics, recorded, rows)
    sensing: Sensing = dynamics.sensing
    start_key, key, sensor_key = jax.random.split(key, 3)
    mean, sd = recorded.start
    state = mean + sd * jax.random.normal(start_key, mean.shape, mean.dtype)

    def body(x, key_and_sample):
        key, sample = key_and_sample
        state_key, input_key = jax.random.split(key)
        u = sample.inputs
        if sample.input_sd is not None:
            u = u + sample.input_sd * jax.random.normal(input_key, u.shape, x.dtype)
        next_mean = step(sample.times, sample.lengths, x, u)
        return next_mean + sample.process_sd * jax.random.normal(state_key, x.shape, x.dtype), x

    _, states = jax.lax.scan(body, state, (jax.random.split(key, len(samples.times)), samples))
    readings = jax.vmap(sensing.read)(states)
    shape, dtype = readings.shape, readings.dtype
    noise = jax.random.normal(sensor_key, shape, dtype)
    if sensing.df is not None:
        noise = jax.random.t(sensor_key, sensing.df, shape, dtype)
    readings = readings + sensing.measurement.value(recorded.sensing) * noise
    return readings if sensing.instrument is None else sensing.instrument.recorded(readings)
