# SPDX-License-Identifier: GPL-2.0-or-later
"""A cancel is answered in every phase: before the commit the guest goes on here, after it "too late" is the answer.

How soon is printed; bench/answers measures it on a machine that has time.
"""

import os

import pytest

from cancel import PHASES, cancelled
from stays import settled, small, wait_as_before
from testbed import Testbed, section

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def host():
    with Testbed(hosts=("a",), sshd=False) as bed:
        bed.a.write_conf(section("deadlines", connect=60, prepare=60, finish=2, no_progress=60, switchover=60))
        small(bed.a, "web1", 5)
        bed.a.vmferry("start", "web1")
        yield bed.a


@pytest.mark.parametrize("phase", PHASES)
def test_cancel(host, phase):
    before = settled(host)
    print(f"{phase}: answered after {cancelled(host, 'web1', phase) * 1000:.0f} ms")
    wait_as_before(host, before)
