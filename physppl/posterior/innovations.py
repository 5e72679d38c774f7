"""Innovations of a fit: errors of its one-step predictions in their sds, independent where the model is right."""

from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from physppl.data.data import Data
from physppl.data.transitions import Transitions
from physppl.density.forms import Form, GaussianForm
from physppl.density.moments import log_joint_and_outcomes
from physppl.density.unconstrained import Gaussian, UnconstrainedSpace
from physppl.dynamics import Dynamics
from physppl.dynamics.likelihood import Dependence
from physppl.internal.precision import doubles
from physppl.posterior.fleet import find_dynamics

LARGEST = 37.0  # sds: beyond, the tail of a normal distribution is zero in double precision


class Innovations(NamedTuple):
    """Standardised one-step errors of R parts (recordings, machines) of N outcomes in d coordinates.

    Attributes:
        errors: (R, N, d), independent and standard normal under the model; zero where `seen` is False.
        expected: (R, N, d), the predictions themselves.
        seen: True for outcomes that count.
        times: (R, N) s, of the outcomes; None where the data have no clock.
        inputs: (R, N, A), or None where the data have none.
        lag: rows from the latest input that is known to precede an outcome: 0 where that is the row's own.
        names: of the d coordinates.
        input_names: of the A inputs.
        row: name of one outcome.
        parts: names of the R parts, e.g. "recording 0", "machine 2".
        parameters: number of parameters that were fitted to the outcomes.
        noise_is_known: True where no noise was fitted.
    """

    errors: Float[np.ndarray, "R N d"]
    expected: Float[np.ndarray, "R N d"]
    seen: Bool[np.ndarray, "R N d"]
    times: Float[np.ndarray, "R N"] | None
    inputs: Float[np.ndarray, "R N A"] | None
    lag: int
    names: tuple[str, ...]
    input_names: tuple[str, ...]
    row: str
    parts: tuple[str, ...]
    parameters: int
    noise_is_known: bool

    def place(self, part: int, index: int, coordinate: int) -> str:
        """Part, coordinate and time of an outcome, in words."""
        when = f"{self.row} {index}" if self.times is None else f"{self.times[part, index]:.4g} s"
        of_part = f" of {self.parts[part]}" if len(self.errors) > 1 else ""
        return f"{self.names[coordinate]} at {when}{of_part}"


def innovations(posterior: Any) -> Innovations:
    """Innovations of a posterior on the data of its fit, at its centre.

    Raises:
        TypeError: for outcomes that are not rows of Gaussian or Student-t values.
    """
    form = posterior.unconstrained()
    if form is None:
        found = of_functions(posterior)
    else:
        with jax.enable_x64(True):
            point = centre(form)[None]
            *_, sites = log_joint_and_outcomes(form.space, posterior.model, posterior.data, point)
        found = of_sites(posterior, form.space, sites)
    if found is None:
        raise TypeError(f"innovations: the outcomes of {posterior!r} are not rows of Gaussian or Student-t values.")
    return found


def centre(form: Form) -> Float[jax.Array, " P"]:
    """The point of a posterior at which its innovations are taken: the mode of a Gaussian, the mean of draws."""
    return form.mode if isinstance(form, GaussianForm) else form.moments()[0]


def of_sites(posterior: Any, space: UnconstrainedSpace, sites: dict[str, Gaussian]) -> Innovations | None:
    """Innovations from the observed sites of a model at its posterior's centre; None where they are not Gaussian.

    Args:
        sites: of `physppl.density.moments.log_joint_and_outcomes`.
    """
    model, data = posterior.model, posterior.data
    if not isinstance(data, Data):
        return None
    name = model.likelihood(data).site if isinstance(model, Dynamics) else None
    fitting = [k for k, s in sites.items() if np.ndim(s.value) > 1 and np.shape(s.value)[:-1] == np.shape(data.valid)]
    name = name if name in sites else next(iter(fitting), None)
    if name not in fitting:
        return None
    site = jax.tree.map(np.asarray, sites[name])
    seen = (site.root_weight > 0) & np.isfinite(site.value) & np.asarray(data.valid)[..., None]
    errors = np.where(seen, (site.value - site.mean) * np.exp(-site.log_scale), 0.0)
    if site.df is not None:
        errors = normal_scores(errors, site.df)
    if site.bounds is not None:
        errors = np.where(seen, interval_scores(site.mean, np.exp(site.log_scale), *site.bounds), 0.0)
    return _arranged(posterior, errors, site.mean, seen, space.size)


def normal_scores(errors: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Normal quantiles of the ranks of Student-t errors, from the nearer tail."""
    return np.sign(errors) * np.minimum(stats.norm.isf(stats.t.sf(np.abs(errors), df)), LARGEST)


def interval_scores(mean: np.ndarray, sd: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Normal quantiles of errors drawn within the intervals that are known: standard normal where the model is right.

    These are the randomised quantile residuals of P. Dunn and G. Smyth, J. Comp. Graph. Statistics 5, 1996; the draws
    are the same in every call.
    """
    low, high = (low - mean) / sd, (high - mean) / sd
    turned = low + high > 0  # to the nearer tail, where probabilities are exact
    low, high = np.where(turned, -high, low), np.where(turned, -low, high)
    share = np.random.default_rng(0).uniform(size=np.shape(low))
    below, above = stats.norm.cdf(low), stats.norm.cdf(high)
    scores = np.maximum(stats.norm.ppf(below + share * (above - below)), -LARGEST)
    return np.where(turned, -scores, scores)


def of_functions(posterior: Any) -> Innovations | None:
    """Innovations about the posterior's mean function, where that is all there is; None for recordings."""
    model, data = posterior.model, posterior.data
    if not isinstance(model, Dynamics) or not isinstance(data, Data) or data.sequential or data.machines:
        return None
    if model.likelihood(data).dependence is not Dependence.ROWS:
        return None
    with jax.enable_x64(True):
        rows = doubles(data)
        mean, _ = posterior.basis(rows.states, rows.actions, rows.times)
        mean = np.asarray(mean)
        errors = (np.asarray(model.outcomes(rows)) - mean) / np.asarray(posterior.noise(), float)
    seen = np.broadcast_to(np.asarray(data.valid)[..., None], errors.shape)
    return _arranged(posterior, np.where(seen, errors, 0.0), mean, seen, errors.size)


def _arranged(posterior: Any, errors, expected, seen, parameters: int) -> Innovations:
    model, data = posterior.model, posterior.data
    size, width = errors.shape[-2:]
    errors = np.clip(errors, -LARGEST, LARGEST).reshape(-1, size, width)
    inputs, times = getattr(data, "actions", None), getattr(data, "times", None)
    names, input_names, lag, known = tuple(map(str, range(width))), (), 0, False
    dynamics, plates = (model, ()) if isinstance(model, Dynamics) else _of_fleet(model, data)
    if dynamics is not None:
        likelihood = dynamics.likelihood(data)
        names = likelihood.space(dynamics).names
        lag = 1 if likelihood.dependence is Dependence.RECORDINGS else 0
        known = dynamics.knows_noise and (not lag or dynamics.sensing.measurement.known)
        input_names = dynamics.action.names
    if inputs is not None:
        inputs = np.asarray(inputs, float).reshape(len(errors), size, -1)
        input_names = input_names or tuple(map(str, range(inputs.shape[-1])))
    if times is not None:
        times = np.asarray(times, float).reshape(len(errors), size)
        times = times if np.ptp(times) > 0 else None
    expected = np.broadcast_to(expected, seen.shape).reshape(errors.shape)
    return Innovations(
        errors, expected, seen.reshape(errors.shape), times, inputs, lag, names, input_names, data.row,
        _parts(data, plates, len(errors)), parameters, known,
    )  # fmt: skip


def _of_fleet(model: Any, data: Data) -> tuple[Dynamics | None, tuple[str, ...]]:
    """The one Dynamics that a model runs in plates, and their names; None of another model."""
    if isinstance(data, Transitions):
        with suppress(TypeError, ValueError):
            dynamics, plates, *_ = find_dynamics(model, data)
            return dynamics, plates
    return None, ()


def _parts(data: Data, plates: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Names of the independent parts of data, those of a fleet by its plates, outermost first."""
    if not plates:
        kind = "machine" if data.machines else data.part
        return tuple(f"{kind} {r}" for r in range(count))
    return tuple(
        ", ".join(f"{plate} {i}" for plate, i in zip(plates, index, strict=True))
        for index in np.ndindex(*data.machines)
    )
