"""The list of planted faults keeps to the source: `make mutants` plants them."""

from collections import Counter

import pytest
from mutants.run import ROOT, faults

FAULTS = faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_can_be_planted(fault):
    assert fault.planted(ROOT) != (ROOT / fault.file).read_text()
    assert fault.tests and not fault.missing(ROOT), fault.missing(ROOT)


def test_faults_have_names_of_their_own():
    assert [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1] == []
