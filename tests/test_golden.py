"""The stored runs of tests/golden.py, to 1e-5; `python tests/golden.py --write` stores them anew."""

import numpy as np
import pytest
from golden import FOLDER, RUNS, numbers, stored


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_run_comes_out_again(name):
    expected, found = stored(name), numbers(name)
    assert list(found) == list(expected)
    for what, values in expected.items():
        # Relative to the largest number of its kind: what is zero by symmetry is zero to rounding.
        np.testing.assert_allclose(found[what], values, rtol=1e-5, atol=1e-7 * np.abs(values).max(), err_msg=what)


def test_nothing_else_is_stored():
    assert {path.stem for path in FOLDER.iterdir()} == set(RUNS)
