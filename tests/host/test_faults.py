# SPDX-License-Identifier: GPL-2.0-or-later
"""A kill, a cut link, a cancel or a power-down before and after the engine's actions, with a real guest.

After each: never two guests; one that runs, unless the fault itself killed the QEMU that owned the guest; its connection
alive; the other host clean; both keepers back by themselves. Needs a build with -Dfaults=true (tools/check makes one);
a sample of the points, all of them with make check-long.
"""

import re
import select
import time

import pytest

from testbed import LIMIT, Guest, Testbed, build_option

# Every action of a completed migration, and of one that goes back, in order; by the side that carries it out.
SOURCE = """CONNECT HELLO PROVE SEND_PREPARE OPEN_DATA START_MIGRATE LAST_DELTA CONTINUE JOURNAL_COMMIT RELEASE_LEASE
SEND_FINISH JOURNAL_GONE KILL_QEMU FLUSH NOTE FORGET END""".split()
TARGET = """START_QEMU PREPARE_REPLY ARM_GATE ACQUIRE_LEASE JOURNAL_COMMITTED CONT SAY_RUNNING ANNOUNCE""".split()
# A QEMU killed from here on may be gone before or after `cont` was sent to it: then nobody can say that it has not run.
MAY_HAVE_RUN = TARGET[TARGET.index("ARM_GATE") :]


def points():
    for side, actions in (("source", SOURCE), ("target", TARGET)):
        for action in actions:
            for when in ("before", "after"):
                for victim in ("self", "qemu", "link", *(("cancel", "powerdown") if side == "source" else ())):
                    yield f"{side}:{action}:{when}:{victim}"


ALL = [p for p in points() if not p.endswith(":powerdown") or p.split(":")[1] in SOURCE[:6]]
SAMPLE = [p for p in ALL if re.search(r"source:(SEND_PREPARE|START_MIGRATE|LAST_DELTA|JOURNAL_COMMIT|SEND_FINISH|JOURNAL_GONE):after"
                                      r"|target:(START_QEMU|PREPARE_REPLY|ARM_GATE|JOURNAL_COMMITTED|CONT):after", p)]


class Pair:
    """Two hosts, and a guest that is on one of them."""

    def __init__(self, bed):
        self.bed, self.guest = bed, Guest()
        self.here, self.there = bed.a, bed.b
        self.probe = None

    def boot(self):
        self.close_probe()
        self.here.start("web1", self.guest)
        self.probe = self.bed.probe(f"ping,{self.guest.ip4}")

    def close_probe(self):
        if self.probe:
            self.probe.close()
        self.probe = None

    def states(self):
        """(state, qemu's pid or None) of both hosts; state None: no keeper."""
        found = []
        for host in (self.here, self.there):
            r = host.vmferry_json("status", "web1", check=False)
            found.append((r.get("state"), r.get("pid")) if isinstance(r, dict) and r.get("pid") else (None, None))
        return found

    def settle(self, limit=30):
        """Wait until no keeper is busy any more: at most one host has a QEMU, and that one is not in the middle of it."""
        end = time.monotonic() + limit
        while True:
            states = self.states()
            running = [s for s, _ in states if s in ("running", "paused")]
            busy = [s for s, _ in states if s in ("incoming", "in-doubt", "starting")]
            assert [s for s, _ in states].count("running") < 2, f"two guests run: {states}"
            if len(running) <= 1 and not busy and "paused" not in running and self.idle():
                return states
            assert time.monotonic() < end, f"not settled: {states}"
            select.select([], [], [], 0.05)

    def idle(self):
        for host in (self.here, self.there):
            r = host.vmferry_json("status", "web1", check=False)
            if isinstance(r, dict) and r.get("migration"):
                return False
        return True

    def swap(self):
        self.here, self.there = self.there, self.here


@pytest.fixture(scope="module")
def pair():
    with Testbed() as bed:
        for host in (bed.a, bed.b):
            host.write_conf("deadlines { connect = 60 prepare = 60 switchover = 20 finish = 10 link = 20 }\n")
        pair = Pair(bed)
        pair.boot()
        yield pair
        pair.close_probe()


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("point", [p if p in SAMPLE else pytest.param(p, marks=pytest.mark.long) for p in ALL])
def test_fault(pair, point):
    side, action, when, victim = point.split(":")
    host = pair.here if side == "source" else pair.there
    pair.probe.mark()
    (host.runtime / "fault").write_text(f"{action}:{when}:{victim}\n")
    result = pair.here.run("vmferry", "migrate", "web1", pair.there.exec_destination(), "--transport=tcp", "--json",
                           check=False, timeout=LIMIT)
    struck = not (host.runtime / "fault").exists()
    if not struck:
        (host.runtime / "fault").unlink()
    assert struck, f"the point was never reached: {result.stdout} {result.stderr}"
    states = pair.settle()
    running = [s for s, _ in states].count("running")
    source_owned = side == "source" and victim == "qemu" and SOURCE.index(action) <= SOURCE.index("JOURNAL_COMMIT")
    target_owned = side == "target" and victim == "qemu" and (action in MAY_HAVE_RUN)
    may_be_lost = source_owned or target_owned or victim == "powerdown"
    assert running == 1 or (running == 0 and may_be_lost), (states, result.stdout, result.stderr)
    if running == 0:
        assert pair.here.wait_clean() == [] and pair.there.wait_clean() == []
        owner = pair.there if (pair.there.state / "web1" / "definition").exists() else pair.here
        if owner is pair.there:
            pair.swap()
        pair.boot()
        return
    if states[1][0] == "running":
        pair.swap()
    assert pair.there.wait_clean() == []
    pair.probe.assert_alive()
