"""Gymnasium environments as host systems: what they observe, when they end, what they refuse."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import example

import physppl as pp
from physppl.control.gym import GymSystem
from physppl.inference import Laplace
from physppl.internal.fingerprint import fingerprint
from physppl.models import gym_pendulum, inverted_pendulum
from physppl.planning import ICEM, RandomPolicy, RandomShooting
from physppl.planning.acquisition import PosteriorMean

gymnasium = pytest.importorskip("gymnasium", reason="the [gym] extra is not installed")
from gymnasium.spaces import Box, Dict, Discrete  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402

DT = 0.2  # s
PLANNER = RandomShooting(horizon=4, population=8)
BACKEND = Laplace(starts=2)


class Slide(gymnasium.Env):
    """place + speed dt, pushed; it ends beyond 1 m, where 5 more are paid. A reset starts at +-0.5 m."""

    dt = DT
    observation_space = Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, gain=1.0, limit=2.0, shape=(1,)):
        self.gain = gain
        self.action_space = Box(-limit, limit, shape, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.array([self.np_random.uniform(-0.5, 0.5), 0.0])
        return self.state.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.state = self.state + DT * np.array([self.state[1], self.gain * float(action[0])])
        over = bool(abs(self.state[0]) > 1.0)
        return self.state.copy(), float(-abs(self.state[0]) + 5.0 * over), over, False, {}


class Switch(Slide):
    """Two pushes and no more."""

    def __init__(self):
        super().__init__()
        self.action_space = Discrete(2)


class Spinner(gymnasium.Env):
    """Turns at a constant 2.5 rad a step, through +-pi; the cosine and sine of its angle are seen."""

    observation_space = Dict(circle=Box(-1.0, 1.0, (2,), np.float64))
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.angle = 3.0
        return self._seen(), {}

    def step(self, action):
        self.angle += 2.5
        return self._seen(), 0.0, False, False, {}

    def _seen(self):
        return {"circle": np.array([np.cos(self.angle), np.sin(self.angle)])}


gymnasium.register("physppl/Slide-v0", Slide, max_episode_steps=12)
gymnasium.register("physppl/EndlessSlide-v0", Slide)
gymnasium.register("physppl/Spinner-v0", Spinner)

state = pp.StateSpace(place=pp.Real("m"), speed=pp.Real("m/s"))
action = pp.ActionSpace(push=pp.Bounded(-2.0, 2.0, "m/s^2"))


def program():
    gain = pp.physical("gain", 0.2, 3.0)
    return pp.Step(lambda t, x, u: x + DT * jnp.stack([x[1], gain * u[0]]))


dynamics = pp.Dynamics(program, state, action, dt=DT)
spin = pp.Dynamics(
    lambda: pp.Step(lambda t, x, u: x + 2.5),
    pp.StateSpace(angle=pp.Angle()),
    pp.ActionSpace(a=pp.Bounded(-1.0, 1.0)),
    dt=1.0,
)
turning = gym_pendulum.dynamics()
TASK = pp.Task(lambda x, u: -jnp.abs(x[0]), steps=20)


def by_hand(seed, actions, limit=None):
    """States, rewards and how it ended of one Slide in a plain loop, in NumPy."""
    env = Slide()
    states, rewards = [env.reset(seed=seed)[0]], []
    for push in actions[:limit]:
        x, r, over, _, _ = env.step(np.asarray(push, np.float32))
        states.append(x)
        rewards.append(r)
        if over:
            return np.array(states), np.array(rewards), True
    return np.array(states), np.array(rewards), False


def vector(mode, batch=6):
    make = lambda: gymnasium.make("physppl/Slide-v0")  # noqa: E731
    return SyncVectorEnv([make] * batch, autoreset_mode=mode)


MACHINES = {
    "id": lambda: GymSystem("physppl/Slide-v0", dynamics, batch=6),
    "function": lambda: GymSystem(lambda: gymnasium.wrappers.TimeLimit(Slide(), 12), dynamics, batch=6),
    "simulator": lambda: GymSystem(
        "physppl/Slide-v0", dynamics, from_simulator=lambda env: env.unwrapped.state, batch=6
    ),
    "next step": lambda: GymSystem(vector(AutoresetMode.NEXT_STEP), dynamics),
    "same step": lambda: GymSystem(vector(AutoresetMode.SAME_STEP), dynamics),
    "disabled": lambda: GymSystem(vector(AutoresetMode.DISABLED), dynamics),
    "vector simulator": lambda: GymSystem(
        vector(AutoresetMode.NEXT_STEP), dynamics, from_simulator=lambda env: env.unwrapped.state
    ),
}


@pytest.mark.parametrize("make", MACHINES.values(), ids=MACHINES)
def test_each_machine_of_a_batch_ends_in_its_own_way(make):
    """Some fall off at 1 m at different steps, some are cut off after 12; none shows anything of a next episode."""
    system = make()
    first = system.reset(7)
    actions = np.linspace(-2.0, 2.0, 6)[:, None]
    steps = []
    while system._alive.any():
        steps.append(system.step(actions))
    for i in range(6):
        states, rewards, terminated = by_hand(7 + i, [actions[i]] * 50, limit=12)
        count = len(rewards)
        assert np.array_equal(np.stack([first[i], *(s.states[i] for s in steps[:count])]), states)
        assert np.array_equal([s.rewards[i] for s in steps[:count]], rewards)
        assert steps[count - 1].terminated[i] == terminated
        assert steps[count - 1].truncated[i] == (count == 12)
        assert not any(s.terminated[i] or s.truncated[i] for s in steps[: count - 1])
        assert all(np.array_equal(s.states[i], states[-1]) and s.rewards[i] == 0.0 for s in steps[count:])
    ends = {int(np.argmax([s.terminated[i] or s.truncated[i] for s in steps])) for i in range(6)}
    assert len(ends) > 2  # the case is not trivial
    with pytest.raises(RuntimeError, match="no episode is running; call reset"):
        system.step(actions)
    assert np.array_equal(system.reset(7), first)  # and the next episode begins everywhere
    system.close()


@pytest.mark.parametrize("steps", [8, 12, 20], ids=["task ends first", "together", "environment ends first"])
def test_the_limit_of_time_of_the_task_and_of_the_environment(steps):
    task = pp.Task(TASK.reward, steps=steps)
    still = RandomPolicy(amplitude=0.1)
    system = GymSystem("physppl/Slide-v0", dynamics, batch=3)
    record = pp.episode(jax.random.key(0), system, task, still, dynamics.transition({"gain": 1.0}, 0.0))
    assert record.states.shape == (3, steps + 1, 2) and record.valid.shape == (3, steps)
    assert np.all(np.asarray(record.valid).sum(1) == min(steps, 12)) and not np.any(record.terminated)


def test_an_episode_records_the_environments_rewards_and_its_end():
    system = GymSystem("physppl/EndlessSlide-v0", dynamics, batch=4)
    task = pp.Task(lambda x, u: 100.0 + 0 * x[0], steps=60)  # not what the environment pays
    record = pp.episode(jax.random.key(1), system, task, RandomPolicy(), dynamics.transition({"gain": 1.0}, 0.0))
    seed = int(jax.random.randint(jax.random.split(jax.random.key(1))[0], (), 0, 2**31 - 1))
    assert np.any(record.terminated)
    for i in range(4):
        states, rewards, terminated = by_hand(seed + i, np.asarray(record.actions[i]))
        count = len(rewards)
        assert np.allclose(record.states[i, : count + 1], states, atol=1e-12)
        assert np.isclose(record.returns[i], rewards.sum(), rtol=1e-6)
        assert bool(record.terminated[i]) == terminated and int(np.sum(record.valid[i])) == count


def test_seeds_differ_between_machines_and_agree_between_runs():
    one, again = (GymSystem("physppl/Slide-v0", dynamics, batch=5) for _ in range(2))
    assert np.array_equal(one.reset(3), again.reset(3))
    assert len(set(one.reset(3)[:, 0])) == 5
    assert not np.array_equal(one.reset(3), one.reset(300))
    assert np.array_equal(one.reset(3)[2:3], GymSystem("physppl/Slide-v0", dynamics).reset(5))


def test_an_environment_of_ones_own_and_its_arguments():
    env = Slide(gain=2.0)
    alone, by_id = GymSystem(env, dynamics), GymSystem("physppl/Slide-v0", dynamics, env_kwargs={"gain": 2.0})
    assert alone.batch == by_id.batch == 1
    assert np.array_equal(alone.reset(0), by_id.reset(0))
    push = np.array([[1.5]])
    assert np.array_equal(alone.step(push).states, by_id.step(push).states)
    assert alone.step(push).states[0, 1] == pytest.approx(2 * DT * 2.0 * 1.5)


REFUSED = {
    "discrete": (TypeError, "planners need continuous ones.*TransformAction", lambda: GymSystem(Switch(), dynamics)),
    "two actions": (ValueError, r"\(2,\), the action space is \(1,\)", lambda: GymSystem(Slide(shape=(2,)), dynamics)),
    "bounds": (ValueError, "would be clipped silently.*RescaleAction", lambda: GymSystem(Slide(limit=1.0), dynamics)),
    "dt": (ValueError, r"0\.2 s, one of the dynamics 0\.4 s", lambda: GymSystem(Slide(), dynamics.rebound(dt=0.4))),
    "repeated": (ValueError, r"lasts 0\.4 s", lambda: GymSystem(Slide(), dynamics, dt=0.4)),
    "observation": (ValueError, r"shape \(3,\).*from_observation", lambda: GymSystem("Pendulum-v1", turning)),
    "both": (ValueError, "got both", lambda: GymSystem(Slide(), dynamics, from_observation=abs, from_simulator=abs)),
    "batch of one": (ValueError, "an Env is one machine", lambda: GymSystem(Slide(), dynamics, batch=2)),
    "batch of six": (ValueError, "has 6 machines", lambda: GymSystem(vector("NextStep"), dynamics, batch=2)),
    "batch of none": (ValueError, "at least 1", lambda: GymSystem("physppl/Slide-v0", dynamics, batch=0)),
    "kwargs": (ValueError, "env_kwargs are for an id", lambda: GymSystem(Slide(), dynamics, env_kwargs={"gain": 1.0})),
    "no env": (TypeError, "takes an id", lambda: GymSystem(3, dynamics)),
    "reset simulators": (
        ValueError,
        "SAME_STEP",
        lambda: GymSystem(vector(AutoresetMode.SAME_STEP), dynamics, from_simulator=lambda env: env.unwrapped.state),
    ),
    "state": (
        ValueError,
        r"from_observation must give one state \(2,\) \(place, speed\); got shape \(1,\)",
        lambda: GymSystem(Slide(), dynamics, from_observation=lambda o: o[:1]).reset(0),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "message", "make"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(error, message, make):
    with pytest.raises(error, match=message):
        make()


def test_narrower_actions_and_a_said_dt_are_taken():
    GymSystem(Slide(limit=5.0), dynamics)
    GymSystem(Slide(), dynamics.rebound(dt=0.4), dt=0.4)
    discrete = gymnasium.wrappers.TransformAction(Switch(), lambda a: int(a[0] > 0), Box(-2.0, 2.0, (1,)))
    GymSystem(discrete, dynamics)  # what the error says


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "gymnasium":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install physppl\[gym\]"):
        GymSystem("Pendulum-v1", dynamics)


def test_angles_are_unwrapped_along_an_episode():
    system = GymSystem(
        "physppl/Spinner-v0", spin, from_observation=lambda o: [np.arctan2(o["circle"][1], o["circle"][0])], batch=2
    )
    for seed in (0, 1):  # a new episode starts on the circle again
        angles = [system.reset(seed), *(system.step(np.zeros((2, 1))).states for _ in range(40))]
        assert np.allclose(np.stack(angles)[:, :, 0].T, 3.0 + 2.5 * np.arange(41), atol=1e-12)
    exact = GymSystem("physppl/Spinner-v0", spin, from_simulator=lambda env: [env.unwrapped.angle])
    angles = [exact.reset(0), *(exact.step(np.zeros((1, 1))).states for _ in range(40))]
    assert np.array_equal(np.ravel(angles), [3.0, *np.cumsum([3.0, *[2.5] * 40])[1:]])  # nothing to unwrap: untouched


def test_a_fit_is_the_same_of_wrapped_and_of_unwrapped_angles(x64):
    """States through +-pi, as an arctan2 gives them and as this adapter does: differences wrap, so both fit alike."""
    model = gym_pendulum.dynamics(process_noise=1e-3)
    system = GymSystem("Pendulum-v1", model, from_observation=gym_pendulum.from_observation)
    states = [system.reset(1)[0]]
    actions = np.full((60, 1), 2.0) * np.sign(np.sin(np.arange(60) / 8.0))[:, None]
    for push in actions:
        states.append(system.step(push[None]).states[0])
    whole = np.array(states)
    cut = whole.copy()
    cut[:, 0] = np.mod(whole[:, 0] + np.pi, 2 * np.pi) - np.pi
    assert np.abs(np.diff(cut[:, 0])).max() > 5.0 and np.abs(np.diff(whole[:, 0])).max() < 1.0
    fits = [pp.fit(jax.random.key(0), model, pp.Transitions(x[:-1], actions, x[1:]), BACKEND) for x in (whole, cut)]
    for name, value in gym_pendulum.truth.items():
        first, second = (float(f.mean().sites[name]) for f in fits)
        assert first == pytest.approx(second, rel=1e-9) and first == pytest.approx(value, rel=1e-4)
    assert np.allclose(fits[0].factor, fits[1].factor, rtol=1e-6)


def test_the_pendulums_equations_are_gymnasiums(x64):
    """To the rounding of its 32 bit torque, also where it cuts off speed and torque."""
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    transition = gym_pendulum.dynamics().transition(gym_pendulum.truth, 0.0)
    rng = np.random.default_rng(0)
    starts = rng.uniform([-7, -8], [7, 8], (200, 2))
    torques = np.asarray(rng.uniform(-3, 3, (200, 1)), np.float32)
    ends = []
    for start, torque in zip(starts, torques, strict=True):
        env.state = start
        env.step(torque)
        ends.append(env.state)
    assert np.any(np.abs(np.array(ends)[:, 1]) == 8.0) and np.any(np.abs(torques) > 2.0)
    ours = jax.vmap(lambda x, u: transition.stepper()(0.0, x, u))(jnp.asarray(starts), jnp.asarray(torques, float))
    assert np.allclose(ours, ends, atol=1e-6, rtol=0)


def test_the_pendulums_reward_is_gymnasiums_one_step_later():
    system = GymSystem("Pendulum-v1", gym_pendulum.dynamics(), from_observation=gym_pendulum.from_observation)
    task = pp.Task(gym_pendulum.swing_up.reward, steps=50)
    record = pp.episode(jax.random.key(0), system, task, RandomPolicy(), gym_pendulum.system().transition)
    zero = np.zeros(1)
    ours = np.array([task.reward(x, zero) for x in np.asarray(record.states)])  # costs of states
    effort = 0.001 * np.asarray(record.actions)[:, 0] ** 2
    assert np.allclose(record.rewards, ours[:-1] - effort, atol=1e-4)


def test_the_inverted_pendulums_equations_are_mujocos(x64):
    """One step from states all over the rail and to 0.5 rad: equal to rounding, 1e-12 of any coordinate."""
    pytest.importorskip("mujoco", reason="the [mujoco] extra is not installed")
    env = gymnasium.make("InvertedPendulum-v5").unwrapped
    env.reset(seed=0)
    assert env.dt == inverted_pendulum.DT
    truth = inverted_pendulum.nominal
    assert np.allclose(env.model.body_mass[1:], [truth["cart_mass"], truth["pole_mass"]], rtol=1e-12)
    transition = inverted_pendulum.dynamics().transition(truth, 0.0)
    rng = np.random.default_rng(0)
    starts = rng.uniform([-0.8, -0.5, -2, -3], [0.8, 0.5, 2, 3], (200, 4))
    forces = rng.uniform(-3, 3, (200, 1))
    ends = []
    for start, force in zip(starts, forces, strict=True):
        env.set_state(start[:2], start[2:])
        env.do_simulation(force, env.frame_skip)
        ends.append(np.concatenate([env.data.qpos, env.data.qvel]))
    assert np.max(np.abs(np.array(ends)[:, 0])) < 1.0  # no stop is touched
    ours = jax.vmap(lambda x, u: transition.stepper()(0.0, x, u))(jnp.asarray(starts), jnp.asarray(forces))
    assert np.allclose(ours, ends, atol=1e-12, rtol=0)


def learn(**options):
    system = GymSystem("physppl/EndlessSlide-v0", dynamics, batch=3, env_kwargs={"gain": 1.5})
    return pp.psrl(jax.random.key(2), system, TASK, dynamics, BACKEND, PLANNER, 2, **options)


@pytest.mark.science
def test_psrl_learns_from_all_machines_of_a_batch():
    run = learn()
    assert run.episodes.states.shape == (2, 3, 21, 2) and run.episodes.terminated.shape == (2, 3)
    assert int(np.sum(run.data.valid)) == int(np.sum(run.episodes.valid)) > 40
    assert len(run.data) == 2 * 3 * 20
    assert float(run.posterior.mean().sites["gain"]) == pytest.approx(1.5, rel=1e-4)
    assert np.array_equal(learn().episodes.states, run.episodes.states)  # run to run


def test_a_loop_goes_on_from_its_checkpoints(tmp_path):
    whole = learn()
    learn(checkpoints=tmp_path)
    (tmp_path / "episode_0002.npz").unlink()
    resumed = learn(checkpoints=tmp_path)
    for one, other in zip(jax.tree.leaves(whole.episodes), jax.tree.leaves(resumed.episodes), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(whole.posterior.mode, resumed.posterior.mode)


def test_systems_tell_each_other_apart_by_what_they_are():
    def mark(name="physppl/Slide-v0", used=False, **options):
        system = GymSystem(name, dynamics, **options)
        if used:
            system.reset(0)
            system.step(np.ones((system.batch, 1)))
        return fingerprint(system)

    assert mark() == mark(used=True)
    others = [mark(batch=2), mark(env_kwargs={"gain": 2.0}), mark("physppl/EndlessSlide-v0")]
    others.append(mark(from_simulator=lambda env: env.unwrapped.state))
    assert len({mark(), *others}) == 5
    modes = {fingerprint(GymSystem(vector(m), dynamics)) for m in AutoresetMode}
    assert len(modes) == 3


def test_what_was_learned_acts_on_observations():
    """In a plain Gymnasium loop the agent does what it does in an episode of the library's own."""
    task = pp.Task(gym_pendulum.swing_up.reward, steps=10)
    planner = ICEM(horizon=5, population=16, iterations=1, elites=4, keep=1)
    model = gym_pendulum.dynamics()
    read = gym_pendulum.from_observation
    run = pp.psrl(
        jax.random.key(0), GymSystem("Pendulum-v1", model, from_observation=read), task, model, BACKEND, planner, 1
    )
    env = gymnasium.make("Pendulum-v1")

    def loop():
        agent = run.agent(jax.random.key(1), PosteriorMean(), from_observation=read)
        observation, _ = env.reset(seed=5)
        taken = []
        for _ in range(10):
            taken.append(agent.act(observation))
            observation, *_ = env.step(np.asarray(taken[-1], np.float32))
        return np.array(taken)

    taken = loop()
    assert taken.shape == (10, 1) and np.all(np.abs(taken) <= 2.0) and np.ptp(taken) > 0.1
    assert np.array_equal(taken, loop())
    with pytest.raises(ValueError, match=r"\(2,\) \(angle, velocity\); got shape \(3,\).*from_observation"):
        run.agent(jax.random.key(1)).act(env.reset(seed=5)[0])
    states = run.agent(jax.random.key(1), PosteriorMean())
    read_first = run.agent(jax.random.key(1), PosteriorMean(), from_observation=read)
    seen = env.reset(seed=6)[0]
    assert np.array_equal(states.act(read(seen)), read_first.act(seen))


@pytest.mark.science
def test_three_episodes_teach_gymnasiums_pendulum():
    """Ten fresh episodes average at least -200, on nine of ten seeds."""
    gym_machines = example("gym_machines")
    results = [gym_machines.swing_up(seed) for seed in range(gym_machines.SEEDS)]
    assert np.sum([r.agent.mean() >= -200 for r in results]) >= 9
    assert np.all(gym_machines.worst_error(results, gym_pendulum.truth) < 1e-3)
    assert np.max([r.random.mean() for r in results]) < -600


@pytest.mark.science
def test_the_inverted_pendulum_balances_for_a_thousand_steps():
    """By the fifth episode, on nine of ten seeds."""
    gym_machines = example("gym_machines")
    results = [gym_machines.balance(seed) for seed in range(gym_machines.SEEDS)]
    assert np.sum([(r.training >= 1000).any() for r in results]) >= 9
    assert np.max([r.random.mean() for r in results]) < 100
