"""Gymnasium environments as host systems; needs `pip install physppl[gym]`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from physppl.control.systems import HostStep, HostSystem
from physppl.dynamics import Dynamics


class GymSystem(HostSystem):
    """One Gymnasium environment, or `batch` of them in parallel: `GymSystem("InvertedPendulum-v5", dynamics)`.

    Rewards are the environment's own. An episode ends when the environment terminates or truncates it; a next one,
    begun by a vector environment's autoreset, is ignored. Angles of the state space are unwrapped along an episode:
    they must move by less than half a turn per step.

    Args:
        env: an id; a function () -> Env; an Env; or a VectorEnv, whose environments are the batch.
        dynamics: its state space is what observations are read into, its action space what is applied.
        from_observation: observation -> state (D,), in the coordinates' units; by default the observation is the
            state. `Run.agent` takes the same function, for loops of your own.
        from_simulator: env -> state (D,), read from the environment itself after each reset and step instead of the
            observation: `lambda env: env.unwrapped.state`.
        batch: number of environments made from an id or a function.
        dt: duration of one step of the environment, s; by default its `unwrapped.dt`, where it has one.
        env_kwargs: for `gymnasium.make`, where `env` is an id.

    Raises:
        ImportError: without gymnasium.
        TypeError: for an env of another type, or actions that are not continuous.
        ValueError: where the environment's actions, observations or dt do not match the dynamics.

    Attributes:
        batch: B.
        spec: specification from which the environment was made.
    """

    def __init__(
        self,
        env: Any,
        dynamics: Dynamics,
        *,
        from_observation: Callable[[Any], Any] | None = None,
        from_simulator: Callable[[Any], Any] | None = None,
        batch: int | None = None,
        dt: float | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
    ):
        if from_observation is not None and from_simulator is not None:
            raise ValueError("GymSystem: give from_observation or from_simulator; got both.")
        self.dynamics, self.from_observation, self.from_simulator = dynamics, from_observation, from_simulator
        self._machines = _machines(env, batch, {} if env_kwargs is None else env_kwargs)
        self.batch, self.spec = self._machines.batch, self._machines.spec
        self.made = env if callable(env) else None  # the function that makes it
        self._name = str(getattr(self.spec, "id", type(env).__name__))
        self._check_actions(self._machines.action_space)
        self._check_dt(dt)
        shape = self._machines.observation_space.shape
        if from_observation is None and from_simulator is None and shape != (len(dynamics.state),):
            raise ValueError(
                f"GymSystem({self._name}): observations have shape {shape}, the state is ({len(dynamics.state)},) "
                f"({', '.join(dynamics.state.names)}). Say how to read the state: from_observation=lambda o: "
                "[np.arctan2(o[1], o[0]), o[2]], or from_simulator=lambda env: env.unwrapped.state."
            )
        if from_simulator is not None and self._machines.envs is None:
            raise ValueError(
                f"GymSystem({self._name}): from_simulator reads environments after each step; those of this vector "
                "environment are in other processes, or reset already when an episode ends (AutoresetMode.SAME_STEP). "
                "Pass an id or a function with batch=..., or a SyncVectorEnv of another mode."
            )
        self._alive = np.zeros(self.batch, bool)
        self._last = np.zeros((self.batch, len(dynamics.state)))

    def reset(self, seed: int) -> Float[np.ndarray, "B D"]:
        """Begin an episode of every machine; the i-th is seeded with seed + i.

        Raises:
            ValueError: where the result of `from_observation` or `from_simulator` is not a state.
        """
        self._alive = np.ones(self.batch, bool)
        observations = self._machines.reset(seed)
        self._last = np.stack([self._state(i, observation) for i, observation in enumerate(observations)])
        return self._last

    def step(self, actions: Float[np.ndarray, "B A"]) -> HostStep:
        """Act once on every machine whose episode goes on; the others keep their state and get no reward.

        Raises:
            RuntimeError: before the first reset, or when every episode is over.
        """
        alive = self._alive
        if not alive.any():
            raise RuntimeError(f"GymSystem({self._name}): no episode is running; call reset(seed) first.")
        commands = np.asarray(actions, self._machines.action_space.dtype)
        observations, rewards, terminated, truncated = self._machines.step(commands, alive)
        states = self._last.copy()
        for i in np.flatnonzero(alive):
            states[i] = self._unwrapped(self._state(int(i), observations[i]), self._last[i])
        self._last, self._alive = states, alive & ~(terminated | truncated)
        return HostStep(states, np.where(alive, rewards, 0.0), terminated, truncated)

    def close(self) -> None:
        """Close the environments."""
        self._machines.close()

    def _state(self, i: int, observation: Any) -> Float[np.ndarray, " D"]:
        names, source, value = self.dynamics.state.names, "the observation", observation
        if self.from_simulator is not None:
            assert self._machines.envs is not None  # refused by __init__
            source, value = "from_simulator", self.from_simulator(self._machines.envs[i])
        elif self.from_observation is not None:
            source, value = "from_observation", self.from_observation(observation)
        state = np.asarray(value, float)
        if state.shape != (len(names),):
            raise ValueError(
                f"GymSystem({self._name}): {source} must give one state ({len(names)},) ({', '.join(names)}); "
                f"got shape {state.shape}."
            )
        return state

    def _unwrapped(self, state, last):
        turns = np.round((state - last) / (2 * np.pi))  # zero, hence exact, where the environment unwraps angles itself
        wrapped = self.dynamics.state.is_angle & np.isfinite(turns)
        return state - 2 * np.pi * np.where(wrapped, turns, 0.0)

    def _check_actions(self, box: Any) -> None:
        space, where = self.dynamics.action, f"GymSystem({self._name})"
        if not (hasattr(box, "low") and np.issubdtype(box.dtype, np.floating)):
            raise TypeError(
                f"{where}: actions are {box}; planners need continuous ones (a Box of floats). Use a continuous "
                "version of the environment, or make one and model the switch in the program: gymnasium."
                "wrappers.TransformAction(env, lambda a: int(a[0] > 0), gymnasium.spaces.Box(-1.0, 1.0, (1,)))."
            )
        if box.shape != (len(space),):
            raise ValueError(
                f"{where}: actions have shape {box.shape}, the action space is ({len(space)},) "
                f"({', '.join(space.names)}). Give it one Bounded per action of the environment."
            )
        slack = 1e-6 * (space.high - space.low)  # a Box is rounded to 32 bits
        if np.any(space.low < box.low - slack) or np.any(space.high > box.high + slack):
            raise ValueError(
                f"{where}: actions between {box.low} and {box.high} are taken, those of the dynamics lie between "
                f"{space.low} and {space.high}: larger ones would be clipped silently. Give Bounded the "
                "environment's limits, or wrap the environment in gymnasium.wrappers.RescaleAction."
            )

    def _check_dt(self, dt: float | None) -> None:
        env_dt = self._machines.dt if dt is None else dt
        if env_dt is not None and not np.isclose(env_dt, self.dynamics.dt, rtol=1e-6, atol=0.0):
            raise ValueError(
                f"GymSystem({self._name}): a step of the environment lasts {env_dt:g} s, one of the dynamics "
                f"{self.dynamics.dt:g} s. Write Dynamics(..., dt={env_dt:g}); or, where a wrapper repeats actions, say "
                "GymSystem(..., dt=...)."
            )


class _SeparateEnvs:
    """Separate environments, stepped one by one and not after the end of their episodes."""

    def __init__(self, envs: Sequence[Any]):
        self.envs, self.batch = list(envs), len(envs)
        first = self.envs[0]
        self.action_space, self.observation_space = first.action_space, first.observation_space
        self.spec, self.dt = _spec(first), _dt(first)

    def reset(self, seed: int) -> list:
        return [env.reset(seed=seed + i)[0] for i, env in enumerate(self.envs)]

    def step(self, actions, alive: Bool[np.ndarray, " B"]):
        observations: list = [None] * self.batch
        rewards, ends = np.zeros(self.batch), np.zeros((2, self.batch), bool)
        for i in np.flatnonzero(alive):
            observations[i], rewards[i], *ends[:, i], _ = self.envs[i].step(actions[i])
        return observations, rewards, *ends

    def close(self) -> None:
        for env in self.envs:
            env.close()


class _VectorEnv:
    """Vector environment, whose results after the end of an episode are ignored in every autoreset mode."""

    def __init__(self, env: Any):
        self.env, self.batch = env, env.num_envs
        # Gymnasium 1.0 had this mode alone and no name for it.
        mode = env.metadata.get("autoreset_mode", "NextStep")
        self.mode = getattr(mode, "value", mode)
        self.action_space, self.observation_space = env.single_action_space, env.single_observation_space
        members = getattr(env.unwrapped, "envs", None)
        self.envs = None if self.mode == "SameStep" else members
        self.spec = (_spec(env) if members is None else _spec(members[0]), self.mode)
        self.dt = _dt(env if members is None else members[0])

    def reset(self, seed: int) -> list:
        return self._split(self.env.reset(seed=seed)[0])

    def step(self, actions, alive: Bool[np.ndarray, " B"]):
        if self.mode == "Disabled" and not alive.all():  # it must not step an environment after the end
            self.env.reset(options={"reset_mask": ~alive})
        returned, rewards, terminated, truncated, info = self.env.step(actions)
        observations = self._split(returned)
        if self.mode == "SameStep":
            for i in np.flatnonzero(terminated | truncated):  # the returned one is the next episode's first
                observations[i] = info["final_obs"][i]
        return observations, np.asarray(rewards, float), np.array(terminated, bool), np.array(truncated, bool)

    def close(self) -> None:
        self.env.close()

    def _split(self, observations) -> list:
        from gymnasium.vector.utils import iterate

        return list(iterate(self.env.observation_space, observations))


def _machines(env: Any, batch: int | None, env_kwargs: Mapping[str, Any]) -> "_SeparateEnvs | _VectorEnv":
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("GymSystem needs Gymnasium: pip install physppl[gym].") from error
    if batch is not None and batch < 1:
        raise ValueError(f"GymSystem: batch must be at least 1; got {batch}.")
    if env_kwargs and not isinstance(env, str):
        raise ValueError("GymSystem: env_kwargs are for an id; pass them where you make the environment.")
    if isinstance(env, gymnasium.vector.VectorEnv):
        if batch not in (None, env.num_envs):
            raise ValueError(f"GymSystem: this vector environment has {env.num_envs} machines; got batch={batch}.")
        return _VectorEnv(env)
    if isinstance(env, gymnasium.Env):
        if batch not in (None, 1):
            raise ValueError(
                f"GymSystem: an Env is one machine; for batch={batch} pass its id or a function making it."
            )
        return _SeparateEnvs([env])
    if isinstance(env, str):
        return _SeparateEnvs([gymnasium.make(env, **env_kwargs) for _ in range(batch or 1)])
    if not callable(env):
        raise TypeError(
            f"GymSystem takes an id, a function () -> Env, an Env or a VectorEnv; got {type(env).__name__}."
        )
    return _SeparateEnvs([env() for _ in range(batch or 1)])


def _spec(env: Any) -> Any:
    """Identity of an environment: how it is registered, or else its type and plain attributes."""
    if env.spec is not None:
        return env.spec
    plain = (bool, int, float, str, np.ndarray, tuple)
    attributes = vars(getattr(env, "unwrapped", env))
    return type(env), {k: v for k, v in attributes.items() if not k.startswith("_") and isinstance(v, plain)}


def _dt(env: Any) -> float | None:
    dt = getattr(env.unwrapped, "dt", None)
    return float(dt) if isinstance(dt, float | int) else None
