"""Fixtures of all tests. It imports nothing of physppl: the shape checks hook into the package's first import."""

import gc
import itertools
import logging
import os
import shutil
import tempfile

import hypothesis
import jax
import matplotlib
import pytest

matplotlib.use("Agg")
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("fixed")


def pytest_configure(config):
    """What several tests compile is compiled once: a folder for this run, shared by its workers and subprocesses.

    The default tests spend their time on compiling: their programs are made fast and run slowly. Science runs, which
    compile little and run long, are optimised as users' programs are. Runs that measure times, where pytest-benchmark
    is loaded, compile everything themselves.
    """
    if config.pluginmanager.hasplugin("benchmark"):
        return
    quick = config.option.markexpr == "not science"
    if quick:
        gc.set_threshold(50_000, 20, 100)  # tracing makes many objects and little garbage
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # a worker, which has the settings of its parent
        return
    folder = tempfile.mkdtemp(prefix="physppl-compiled-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    settings = {"compilation_cache_dir": folder, "persistent_cache_min_compile_time_secs": 0}
    if quick:
        settings["disable_most_optimizations"] = True
        if jax.__version_info__[:2] == (0, 10):  # XLA ends a process that names a flag it no longer knows
            # The older emitters compile twice as fast, and whole modules a fifth faster than their parts side by side.
            flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    for name, value in settings.items():
        os.environ[f"JAX_{name.upper()}"] = str(value)
        jax.config.update(f"jax_{name}", value)


@pytest.fixture(autouse=True, scope="module")
def memory_maps():
    """Compiled programs hold memory maps, of which Linux allows a process 65,530: they are freed after each file."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def optimised():
    """For tests whose programs run longer than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def getkey():
    """A function that gives a new random key at every call; the keys of a test are the same in every run."""
    count = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(20), next(count))


@pytest.fixture
def x64():
    """Double precision for the whole test; without it a test runs in single precision, as a user does by default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_user():
    """The library as users run it, without the shape checks of the test run: for its own messages."""
    import jaxtyping

    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def notices(caplog):
    """The library's log messages of the test, as text."""
    caplog.set_level(logging.INFO, logger="physppl")
    return caplog
