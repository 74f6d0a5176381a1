# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator meets after a migration that was torn apart: keepers that come back, a guest in doubt, the word of a
person, notes of VMs that moved. Needs a build with -Dfaults=true.
"""

import fcntl
import os
import re
import shutil
import struct
import time

import pytest

from faults import Pair, come_up, go_down, keepers, kill, qemus, wait_beats
from testbed import LIMIT, Testbed, build_option, wait_file

pytestmark = pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")


@pytest.fixture
def pair():
    with Testbed(sshd=False) as bed:
        pair = Pair(bed, text="deadlines { finish = 2 }\n")
        pair.boot()
        yield pair
        pair.close()


def in_doubt(pair, action, when):
    """web1 in doubt: the other host loses its power at this action and stays away."""
    host = pair.here if action == "SEND_FINISH" else pair.there
    pair.injector.begin({(host, action, when): lambda: go_down(pair.there)})
    pair.start_migration()
    assert pair.wait_client() == 3, pair.output
    assert pair.here.status("web1")["state"] == "in-doubt"
    assert "recover" in pair.output[1]
    return pair.here, pair.there


def test_keepers_return(pair):
    """By themselves, at once; the guest does not notice."""
    times = []
    for _ in range(3):
        killed = keepers(pair.here)
        begin = time.monotonic()
        kill(killed)
        end = begin + LIMIT
        while not (keepers(pair.here) and (pair.here.status("web1") or {}).get("state") == "running"):
            assert time.monotonic() < end
        times.append(round(time.monotonic() - begin, 2))
        assert keepers(pair.here) != killed
    print("keeper answers again after", times, "s")
    assert min(times) < 5
    assert wait_beats(pair.here)[0] == pair.beat[0]


def bury(pair, host):
    """The keeper is killed, and when the next one has found QEMU that dies as well, without a word how the guest was."""
    pair.stop(qemus(host))
    kill(keepers(host))
    wait_file(host.state / "web1" / "log", "found QEMU alive")
    kill(qemus(host))
    pair.stopped = []


def test_target_dies_while_its_keeper_returns(pair):
    """Nothing is left of a guest that did not arrive."""
    pair.injector.begin({(pair.here, "START_MIGRATE", "after"): lambda: bury(pair, pair.there)})
    pair.start_migration()
    assert pair.wait_client() == 1, pair.output
    pair.assert_one()
    assert pair.here is pair.bed.a


def test_guest_in_doubt_dies_while_its_keeper_returns(pair):
    """What is in doubt stays in doubt without the guest, until the other host says whose it is."""
    here, there = in_doubt(pair, "SEND_FINISH", "before")
    bury(pair, here)
    wait_file(here.state / "web1" / "log", "QEMU died before it said")
    assert here.status("web1")["state"] == "in-doubt"
    come_up(there)
    assert pair.settle() == []
    pair.rebooted.add(there)
    pair.start_where_it_may()
    assert pair.here is here


def test_outcome_is_asked_with_growing_pauses(pair):
    """Until it answers; a person may have it asked at once."""
    in_doubt(pair, "SEND_FINISH", "before")
    log = (pair.here.state / "web1" / "log").read_text()
    assert log.count("in doubt: ") >= 4, log
    at = [float(m[1]) for m in re.findall(r"T\d\d:(\d\d):(\d\d\.\d+)Z \d+ info: in doubt: ", log)]
    gaps = [(b - a) % 60 for a, b in zip(at, at[1:])]
    assert all(b > a for a, b in zip(gaps, gaps[1:])), gaps
    come_up(pair.there)
    pair.here.vmferry("recover", "web1")  # ask now
    pair.assert_one()
    assert pair.here is pair.bed.a


def test_target_gone_for_good(pair):
    """It has not run there; a person says so, and is right. What comes back later has nothing to start."""
    here, there = in_doubt(pair, "SEND_FINISH", "before")
    refused = here.vmferry("recover", "web1", "--assume=runs-nowhere", check=False)
    assert refused.returncode == 1 and "both write to the same disks" in refused.stderr
    assert here.status("web1")["state"] == "in-doubt"
    here.vmferry("recover", "web1", "--assume=runs-nowhere", "--yes")
    pair.settle()
    boot, n = wait_beats(here)
    assert boot == pair.beat[0] and n > pair.beat[1]
    started = come_up(there, "web1")[0]
    assert started.returncode == 1, started
    assert there.wait_clean() == []
    pair.rebooted.add(there)
    pair.assert_one()
    here.migrate("web1", there, "--transport=tcp")


def test_target_gone_and_it_had_run(pair):
    """The person is wrong: it had been taken over, and has perhaps written to the disk. The disk's lock is what is left to keep
    the second guest from running; what the other host holds of it has to be removed there by hand (vmferry(1), recover)."""
    here, there = in_doubt(pair, "CONT", "after")
    here.vmferry("recover", "web1", "--assume=runs-nowhere", "--yes")
    pair.settle()
    assert wait_beats(here, both_wrote=True)[0] == pair.beat[0]
    started = come_up(there, "web1")[0]
    assert started.returncode == 1 and "lock" in started.stderr, started
    assert there.wait_clean() == []
    wait_beats(here, both_wrote=True)
    refused = here.vmferry("migrate", "web1", there.exec_destination(), check=False)
    assert refused.returncode == 1 and "web1" in refused.stderr, refused
    shutil.rmtree(there.state / "web1")
    here.migrate("web1", there, "--transport=tcp")


def test_never_is_written_by_itself(pair):
    """The target cannot resume the guest, nor write that it will not, and nobody asks: it tries again until it can."""
    here, there = pair.here, pair.there
    with open(pair.disk, "r+b") as image:

        def lock():
            """QEMU's lock on an image: byte 201 says that nobody else may write."""
            fcntl.fcntl(image, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0))
            go_down(here)

        pair.injector.begin({(there, "CONT", "before"): lock, (there, "JOURNAL_ABORTED", "before"): lambda: "fail"})
        pair.start_migration()
        pair.wait_client()
        assert pair.injector.wait(lambda: (there, "END", "after") in pair.injector.seen)
    assert [action for host, action, when in pair.injector.seen if host is there][-1] == "END"
    assert pair.injector.seen.count((there, "JOURNAL_ABORTED", "before")) == 2
    assert (there, "TRY_LATER", "after") in pair.injector.seen
    assert there.wait_clean() == []
    pair.rebooted.add(here)
    come_up(here, "web1")
    assert pair.settle() == [here]
    assert wait_beats(here)[0] != pair.beat[0]


def test_a_person_says_it_runs_there(pair):
    """The other host has it and cannot be asked: the old guest is destroyed, not resumed."""
    here, there = pair.here, pair.there
    hidden = there.dir / "enter.hidden"

    def part():
        there.enter.rename(hidden)
        return "link"

    pair.injector.begin({(there, "CONT", "after"): part})
    pair.start_migration()
    assert pair.wait_client() == 3, pair.output
    here.vmferry("recover", "web1", "--assume=runs-there", "--yes")
    hidden.rename(there.enter)
    pair.assert_one()
    assert pair.here is there


def test_note_of_a_vm_that_moved(pair):
    """Where it is now is said by start, status and list; a start here has to be forced, and says what it risks."""
    here, there = pair.here, pair.there
    here.migrate("web1", there, "--transport=tcp")
    moved = r"web1 moved to b at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    refused = here.vmferry("start", "web1", check=False)
    assert refused.returncode == 1 and re.search(moved, refused.stderr) and "--force" in refused.stderr, refused
    refused = here.vmferry("migrate", "web1", there.exec_destination(), check=False)
    assert refused.returncode == 1 and re.search(moved, refused.stderr), refused
    said = here.status("web1")
    assert said["state"] == "moved" and said["to"] == "b" and said["at"] <= time.time()
    assert re.search(r"web1 .*moved", here.vmferry("list").stdout)
    assert here.wait_clean() == []
    there.vmferry("kill", "web1")
    forced = here.vmferry("start", "--force", "web1")
    assert "both write to the same disks" in forced.stderr, forced
    boot, _ = wait_beats(here)
    assert boot != pair.beat[0]
    assert here.status("web1")["state"] == "running"
    assert there.wait_clean() == []


def test_connections_for_memory(pair):
    """One for a small guest: of several one may fail as they are made, on which QEMU 10.0 may hang, and the guest never moves again."""

    def count():
        counts.append(len(pair.there.run("ss", "-Htn", "state", "established", "sport = :49152").stdout.splitlines()))

    counts = []
    for options in ([], ["--channels=2"], ["--channels=1"]):
        pair.injector.begin({(pair.here, "LAST_DELTA", "before"): count})
        pair.start_migration(*options)
        assert pair.wait_client() == 0, pair.output
        pair.moved_to(pair.settle()[0])
    assert counts == [1, 3, 1]
