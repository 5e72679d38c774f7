"""Mistakes in a fit, its backend and its key, and in what acts on a posterior."""

import pickle
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer import MCMC, NUTS, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import physppl as pp
from mistakes.common import DT, bind, data, field, fit, model, nuts, of_draws, u, x, y
from mistakes.entry import Mistake, write
from physppl.inference import HMC, SVI, Ensemble, Laplace, from_numpyro

key = jax.random.key(0)
NO_ENSEMBLE = "NumPyro has no ensembles"
NO_ROLLOUT = "a rollout is code of one's own"
heavy = {"mass": jnp.full(100, 2.0)}


@cache
def posterior():
    """One posterior for all of them."""
    return fit(process_noise=0.01)


def kernel(**options):
    return lambda: nuts(model(), x, u, y, kernel=lambda of: NUTS(of, **options))


def svi(steps: int, rate: float) -> str:
    guide = AutoNormal(model())
    run = numpyro.infer.SVI(model(), guide, numpyro.optim.Adam(rate), Trace_ELBO())
    result = run.run(key, steps, x, u, y, progress_bar=False)
    return of_draws(guide.sample_posterior(key, result.params, sample_shape=(100,)))


def of_positions():
    """A model of one argument less than the run gives."""
    MCMC(NUTS(model()), num_warmup=5, num_samples=5, progress_bar=False).run(model(), key, x, u, y)


def predicted(states, actions) -> str:
    draws = Predictive(model(), heavy)(key, states, actions)
    return f"predictions of shape {draws['next'].shape[1:]} for {len(states)} states"


def by_hand(states, actions):
    """A simulation by hand from one state."""
    scan = jax.lax.scan(lambda s, u: (s + DT * field(1.0, s, u), s), jnp.asarray(states), jnp.asarray(actions))
    return f"states of shape {scan[1].shape}"


def pickled() -> str:
    """Draws of one model, read with another."""
    Path("draws").write_bytes(pickle.dumps(heavy))
    spring = model(lambda m, x, u: jnp.stack([x[1], -m * x[0]]))
    draws = Predictive(spring, pickle.loads(Path("draws").read_bytes()))(key, x, u)
    return f"the other model predicts from them, e.g. {draws['next'][0, 0, 0]:.2g} rad"


def saved():
    posterior().save("fit")
    return Path("fit")


def cut(name):
    saved().write_bytes(Path("fit").read_bytes()[:-40])
    return pp.load(name, posterior().model)


def of_unpickling(content: bytes):
    Path("fit").write_bytes(content)
    return pickle.loads(Path("fit").read_bytes())


def another():
    """The pendulum, heavier by a factor in its program."""

    def pendulum():
        m = pp.physical("mass", 0.1, 3.0, unit="kg")
        return lambda t, x, u: field(2.0 * m, x, u)

    return bind(pendulum, process_noise=0.01)


def of_other_spaces():
    state = pp.StateSpace(angle=pp.Angle(), rate=pp.Real("rad/s"))
    return pp.load(saved(), pp.Dynamics(bind().program, state, bind().action, dt=DT))


MISTAKES = [
    Mistake(
        "A number for a random key",
        lambda: pp.fit(0, bind(), data(), Laplace()),
        ("`key` must be a JAX random key; got int 0", "Pass jax.random.key(0)"),
        lambda: nuts(model(), x, u, y, key=0),
    ),
    Mistake(
        "A backend's class, `HMC` for `HMC()`",
        lambda: pp.fit(key, bind(), data(), HMC), ("`backend` must be an object such as Laplace() or HMC()",),
        lambda: MCMC(NUTS, num_warmup=5, num_samples=5, progress_bar=False).run(key, x, u, y),
    ),
    Mistake(
        "Model and data in each other's place",
        lambda: pp.fit(key, data(), bind(), Laplace()),
        ("fit(key, model, data, backend)", "model must be a Dynamics"), of_positions,
    ),
    Mistake(
        "No draws", lambda: HMC(draws=0),
        ("HMC needs draws >= 4", "got 0"), lambda: nuts(model(), x, u, y, num_samples=0),
    ),
    Mistake(
        "An acceptance rate in percent",
        lambda: HMC(target_acceptance=80), ("0 < target_acceptance < 1", "got 80"), kernel(target_accept_prob=80),
    ),
    Mistake(
        "Half a chain", lambda: HMC(chains=2.5),
        ("whole number", "2.5"), lambda: nuts(model(), x, u, y, num_chains=2.5),
    ),
    Mistake(
        "A search for the mode without a start", lambda: Laplace(starts=0),
        ("Laplace needs starts >= 1",), None, "its AutoLaplace has one start",
    ),
    Mistake(
        "A learning rate with the wrong sign",
        lambda: SVI(rate=-0.01), ("SVI needs", "rate > 0", "-0.01"), lambda: svi(1000, -0.01),
    ),
    Mistake(
        "An optimiser without steps", lambda: SVI(steps=0), ("SVI needs steps", "got 0"), lambda: svi(0, 0.01),
    ),
    Mistake(
        "A guide that is made already",
        lambda: SVI(guide=AutoNormal(bind())),
        ("guide must make a guide of a model, e.g. the class AutoNormal",), None, "there a guide is made first",
    ),
    Mistake(
        "An ensemble of one", lambda: Ensemble(members=1), ("members >= 2 to have a spread; got 1",), None, NO_ENSEMBLE,
    ),
    Mistake(
        "NumPyro's MCMC before it has run",
        lambda: from_numpyro(MCMC(NUTS(bind()), num_warmup=1, num_samples=1)),
        ("no draws yet; call mcmc.run(key, data) first",),
        lambda: of_draws(MCMC(NUTS(model()), num_warmup=1, num_samples=1).get_samples()),
    ),
    Mistake(
        "An MCMC among posteriors to compare",
        lambda: pp.compare({"nuts": MCMC(NUTS(bind()), num_warmup=1, num_samples=1)}),
        ("from_numpyro(mcmc)",), None, "NumPyro compares no posteriors",
    ),
    Mistake(
        "New data of another kind",
        lambda: Laplace().update(key, posterior(), {"x": x}),
        ("the posterior is of Transitions; got dict",), None, "NumPyro updates no posteriors",
    ),
    Mistake(
        "A coverage in percent",
        lambda: pp.calibrate(key, bind(), data().inputs, Laplace(), level=95),
        ("level is a probability, 0 < level < 1; got 95",), None, "NumPyro has no calibration",
    ),
    Mistake(
        "A prediction for states of another space",
        lambda: posterior().predict(x[:, :1], u), ("state must end in 2 (angle, velocity); got shape (40, 1)",),
        lambda: predicted(x[:, :1], u),
    ),
    Mistake(
        "Predictions for more states than actions",
        lambda: posterior().predict(x, u[:1]),
        ("must go together; got (40, 2) and (1, 1)",), lambda: predicted(x, u[:1]),
    ),
    Mistake(
        "Many states at once for a function of one",
        lambda: bind().transition({"mass": 1.0})(x, u),
        ("one state is (2,) (angle, velocity); got shape (40, 2)", "Use jax.vmap"),
        lambda: f"a rate of shape {field(1.0, x, u).shape}",
    ),
    Mistake(
        "A rollout of a posterior in place of one of its functions",
        lambda: pp.rollout(posterior(), np.zeros(2), u),
        ("rollout takes a Transition (posterior.draw(key))",), None, NO_ROLLOUT,
    ),
    Mistake(
        "A rollout whose actions are one vector",
        lambda: pp.rollout(bind().transition({"mass": 1.0}), np.zeros(2), u[:, 0]),
        ("one action is (1,) (torque); got shape ()",),
        lambda: by_hand(np.zeros(2), u[:, 0]),
    ),
    Mistake(
        "A rollout of a field without its step",
        lambda: pp.rollout(lambda t, x, u: x, np.zeros(2), u),
        ("a bare field needs exactly one of dt and times",), None, NO_ROLLOUT,
    ),
    Mistake(
        "A negative number of draws",
        lambda: posterior().samples(key, -5), ("draws", "at least 1", "-5"),
        lambda: Predictive(model(), num_samples=-5)(key, x, u),
    ),
    Mistake(
        "A true value of a parameter that is misspelt",
        lambda: posterior().summary(truth={"mas": 1.0}),
        ("summary(truth=...) has no site 'mas'", "Did you mean 'mass'"), None, "its summary takes no truth",
    ),
    Mistake(
        "A posterior saved to a folder that does not exist",
        lambda: posterior().save("nowhere/fit"), ("there is no folder nowhere; make it first",),
        lambda: Path("nowhere/fit").write_bytes(pickle.dumps(heavy)),
    ),
    Mistake(
        "A file that is no posterior",
        lambda: pp.load(write("fit", "mass = 1"), bind()),
        ("fit is no posterior saved by physppl",), lambda: of_unpickling(b"mass = 1"),
    ),
    Mistake(
        "A posterior's file that was cut short",
        lambda: cut("fit"),
        ("damaged or cut short", "Copy it anew"), lambda: of_unpickling(pickle.dumps(jax.device_get(heavy))[:-40]),
    ),
    Mistake(
        "A saved posterior read with another model",
        lambda: pp.load(saved(), another()), ("has changed", "Pass the model"), pickled,
    ),
    Mistake(
        "A saved posterior read with other spaces",
        of_other_spaces,
        ("was saved with another model", "Pass the model"), None, "its arrays have no named coordinates",
    ),
]  # fmt: skip
