# SPDX-License-Identifier: GPL-2.0-or-later
"""What host tests share. `make check` runs them; by hand: /usr/bin/python3 -m pytest tests/host -k NAME"""

import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
pytest.register_assert_rewrite("ctlab")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes; only with VMFERRY_TEST_LONG=1 (make check-long)")
    config.addinivalue_line("markers", "gap(ms): what test_hostile.py's guest may lose in this test")
    config.addinivalue_line("markers", "new_keeper: the keeper of test_hostile.py's guest dies in this test")
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 143))  # so that what tests made is taken down
    # Whoever started us (nohup, a shell's background) may ignore them; what tests start must not, and what has a handler is not passed on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(items):
    if os.environ.get("VMFERRY_TEST_LONG") != "1":
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: make check-long"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test says what the hosts it used have logged."""
    report = (yield).get_result()
    used = getattr(item, "funcargs", {})
    bed = used.get("bed") or next((x.bed for x in used.values() if getattr(x, "bed", None)), None)
    if report.failed and bed and (logs := bed.logs()):
        report.sections.append(("logs of the hosts", logs))


@pytest.fixture
def make_bed():
    """Testbeds with settings of a test's own: make_bed(hosts=("a", "b", "c"))"""
    from testbed import Testbed

    beds = []

    def make(**settings):
        beds.append(Testbed(**settings))
        return beds[-1]

    yield make
    for bed in beds:
        bed.close()


@pytest.fixture
def bed(make_bed):
    """Two hosts, a and b, with strict firewalls, and a client."""
    return make_bed()
