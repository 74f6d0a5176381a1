# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases by sanlock: a real daemon on each host, with a lockspace in a file that both see (no watchdog, short I/O timeout)."""

import contextlib
import os
import re
import shutil
import signal
import subprocess

import pytest

from faults import Injector, qemus
from stays import small
from test_lease import UUID, fault, kill_keeper, needs_faults, settled, struck, wait_state
from testbed import BUILD, Testbed, qemu, section, wait_until

pytestmark = pytest.mark.skipif(not shutil.which("sanlock") or not any(BUILD.rglob("*lease_sanlock.c.o")),
                                reason="needs sanlock, and a build with it")

MIB = 1 << 20
OLD = "/usr/bin/qemu-system-x86_64"
MACHINE = "pc-q35-7.2"  # what both versions of QEMU know

needs_old = pytest.mark.skipif(not os.path.exists(OLD), reason="needs Debian's QEMU 7.2 beside 10.0")


class Sanlock:
    """web1, whose lease is a resource behind the lockspace in one file."""

    def __init__(self, bed):
        self.bed, self.here, self.there = bed, bed.a, bed.b
        self.path = bed.dir / "leases"
        with self.path.open("wb") as f:
            f.truncate(4 * MIB)
        for host in bed.hosts:
            self.start_daemon(host)
        self.client(bed.a, "init", "-s", f"vms:0:{self.path}:0", "-o", "1")
        self.client(bed.a, "init", "-r", f"vms:web1:{self.path}:{MIB}")
        joining = [host.popen("sanlock", "client", "add_lockspace", "-s", f"vms:{n}:{self.path}:0", "-o", "1",
                              stdout=subprocess.DEVNULL) for n, host in enumerate(bed.hosts, 1)]
        assert [child.wait() for child in joining] == [0, 0]

    @staticmethod
    def start_daemon(host):
        run = host.dir / "sanlock"
        run.mkdir()
        host.env |= {"SANLOCK_RUN_DIR": str(run), "SANLOCK_PRIVILEGED": "0"}
        host.write_enter()
        with (host.dir / "sanlock.log").open("w") as log:
            # Beside the hosts, so that it is not among what a VM leaves behind on one.
            host.bed.operator.popen("sanlock", "daemon", "-D", "-w", "0", "-h", "0", "-l", "0", "-U", "root", "-G", "root", "-e", host.name,
                                    "-o", "1", stdout=log, stderr=log, env=host.env)
        wait_until(lambda: (run / "sanlock.sock").exists())

    @staticmethod
    def client(host, *words):
        return host.run("sanlock", "client", *words).stdout

    def section(self, **keys):
        return section("lease sanlock", **({"path": self.path, "lockspace": "vms", "offset": "1M"} | keys))

    def start(self, host, check=True, **keys):
        small(host, "web1", 5, self.section(**keys), uuid=UUID, machine=MACHINE)
        return host.vmferry("start", "web1", check=check)

    def lver(self):
        return int(self.client(self.bed.a, "read", "-r", f"vms:web1:{self.path}:{MIB}").strip().rpartition(":")[2])

    def holder(self):
        """The host that sanlock says has it, None: free; and its lver."""
        for host in self.bed.hosts:
            pid = (host.status("web1") or {}).get("pid")
            if pid and "vms:web1:" in host.run("sanlock", "client", "inquire", "-p", pid, check=False).stdout:
                return host.name, self.lver()
        return None, self.lver()

    def parts(self, host):
        """What the daemon holds for which process: {pid: "SH", shared, or the lver of one that has it alone}."""
        said = self.client(host, "status")
        return {int(pid): part for part, pid in re.findall(r"^r vms:web1:\S+:(\w+) p (\d+)", said, re.M)}

    def lease(self, host):
        return host.status("web1")["lease"]

    def upgrade(self, *options, check=True):
        old = self.here.status("web1")["qemu_version"].startswith("7")
        done = self.here.vmferry_json("upgrade", "web1", "--binary", qemu() if old else OLD, *options, check=False)
        assert not check or done["status"] == "completed", done
        return done

    def number(self, host):
        return 1 if host is self.bed.a else 2

    def leave(self, host):
        self.client(host, "rem_lockspace", "-s", f"vms:{self.number(host)}:{self.path}:0")

    def move(self):
        self.here.migrate("web1", self.there, "--transport=tcp")
        self.swap()

    def alone(self):
        """The one QEMU that is there runs the guest, and has the lease for itself."""
        host = self.here
        wait_until(lambda: (now := host.status("web1")) and now["state"] == "running" and not now.get("migration") and len(qemus(host)) == 1)
        status, lver = host.status("web1"), self.lver()
        assert qemus(host) == [status["pid"]] and self.parts(host) == {status["pid"]: str(lver)}
        assert status["lease"]["held"] and status["lease"]["generation"] == lver
        return status

    def swap(self):
        self.here, self.there = self.there, self.here


@pytest.fixture(scope="module")
def bed():
    with Testbed() as bed:
        for host in bed.hosts:
            host.write_conf("deadlines { connect = 60 prepare = 60 switchover = 20 finish = 10 link = 20 }\n")
        yield bed


@pytest.fixture(scope="module")
def lab(bed):
    return Sanlock(bed)


@pytest.fixture
def leased(lab):
    """The VM runs on leased.here, whatever ran before."""
    status = lab.here.status("web1")
    if not status or status["state"] != "running":
        lab.start(lab.here)
    return lab


def test_life(lab):
    """Taken at the start, given back at pause and end, taken as it was left; the other host is told who has it."""
    a, b = lab.here, lab.there
    refused = lab.start(a, check=False, offset="2M")
    assert refused.returncode == 1 and "there is no resource web1 of the lockspace vms" in refused.stderr
    refused = lab.start(a, check=False, lockspace="none")
    assert refused.returncode == 1 and "has not joined the lockspace none" in refused.stderr
    lab.start(a)
    assert lab.holder() == ("a", 1) and lab.lease(a)["held"]
    refused = lab.start(b, check=False)
    assert refused.returncode == 1 and "is held by host 1 of vms" in refused.stderr, refused.stderr
    kill_keeper(a)
    assert lab.lease(a) == {"driver": "sanlock", "path": str(lab.path), "held": True, "generation": 1}
    a.vmferry("pause", "web1")
    assert lab.holder() == (None, 1)
    a.vmferry("resume", "web1")
    assert lab.holder() == ("a", 2)
    a.vmferry("pause", "web1")
    lab.start(b)
    assert lab.holder() == ("b", 3)
    refused = a.vmferry("resume", "web1", check=False)
    assert refused.returncode == 1 and "is held by host 2 of vms" in refused.stderr, refused.stderr
    b.vmferry("kill", "web1")
    wait_state(b, "gone")
    wait_until(lambda: lab.holder() == (None, 3))
    refused = a.vmferry("resume", "web1", check=False)
    assert refused.returncode == 1 and "was host 2 of vms's, and is free" in refused.stderr, refused.stderr
    a.vmferry("kill", "web1")
    (b.config / "vms" / "web1.vm").unlink()
    shutil.rmtree(b.state / "web1")


def test_there_and_back(leased):
    before = leased.lver()
    for n in (1, 2):
        leased.move()
        assert leased.holder() == (leased.here.name, before + n)
        assert leased.there.wait_clean() == []


@needs_faults
@pytest.mark.parametrize("point", ["source:RELEASE_LEASE:before:self", "source:RELEASE_LEASE:after:link",
                                   "target:ACQUIRE_LEASE:after:self", "target:JOURNAL_COMMITTED:after:self"])
def test_fault(leased, point):
    side, point = point.split(":", 1)
    host = leased.here if side == "source" else leased.there
    fault(host, point)
    done = leased.here.migrate("web1", leased.there, "--transport=tcp", check=False)
    assert struck(host), done
    settled(leased)
    assert leased.holder()[0] == leased.here.name


def test_qemu_killed_frees_it(leased):
    here = leased.here
    os.kill(here.status("web1")["pid"], signal.SIGKILL)
    wait_state(here, "gone")
    assert here.vmferry("log", "web1").stdout.strip().endswith("crashed")
    here.vmferry("start", "web1")
    assert leased.holder()[0] == here.name


@needs_old
@pytest.mark.parametrize("ways", [["in-place", "in-place", "copy", "save"]])
def test_upgrade(leased, ways):
    """Whatever the way, the new QEMU has it, and it was ours all the time, but while a file had the guest."""
    assert leased.here.vmferry_json("upgrade", "web1", "--check")["ok"]
    for way in ways:
        before = leased.alone()
        done = leased.upgrade(f"--way={way}")
        after = leased.alone()
        assert before["pid"] != after["pid"] and before["qemu_version"] != after["qemu_version"]
        if way != "save":
            assert after["lease"]["generation"] == before["lease"]["generation"] + 1
            assert done["warnings"] == []


@needs_old
def test_upgrade_of_a_paused_one(leased):
    """A person has paused the guest, so the lease is free: the new QEMU takes it when the guest is resumed."""
    leased.here.vmferry("pause", "web1")
    leased.upgrade()
    assert leased.parts(leased.here) == {}
    leased.here.vmferry("resume", "web1")
    leased.alone()


@contextlib.contextmanager
def injected(host, plan):
    injector = Injector([host])
    injector.begin({(host, *point): what for point, what in plan.items()})
    try:
        yield injector
        assert not injector.plan, f"never reached: {injector.plan}"
    finally:
        injector.close()


@needs_faults
@needs_old
def test_never_free_in_between(leased):
    """Both hold it from before the guest stops until one of them is gone; to another host it is held all the time."""
    here, there = leased.here, leased.there
    before, seen = leased.alone(), []

    def look():
        refused = leased.start(there, check=False)
        seen.append((refused.returncode, set(leased.parts(here).values()), leased.parts(there)))

    with injected(here, {("START_UPGRADE", "before"): look, ("KILL_OLD", "before"): look, ("OWN_LEASE", "before"): look}):
        leased.upgrade()
    assert seen == [(1, {"SH"}, {})] * 3
    after = leased.alone()
    assert after["pid"] != before["pid"]
    assert there.wait_clean() == []
    (there.config / "vms" / "web1.vm").unlink()


@needs_faults
@needs_old
def test_cannot_be_shared(leased):
    """The daemon does not reach the resource: the old QEMU goes on, and has the lease as before."""
    before, away = leased.alone(), leased.bed.dir / "away"
    with injected(leased.here, {("SHARE_LEASE", "before"): lambda: os.rename(leased.path, away), ("KILL_NEW", "before"): lambda: os.rename(away, leased.path)}):
        done = leased.upgrade(check=False)
    assert done["status"] == "failed" and "sanlock cannot share" in done["error"]["message"], done
    after = leased.alone()
    assert (after["pid"], after["lease"]) == (before["pid"], before["lease"])


@needs_faults
@needs_old
def test_daemon_does_not_answer(leased):
    """The new QEMU cannot be made known to it: the old one goes on, and a check says so as well."""
    before, socket = leased.alone(), leased.here.dir / "sanlock" / "sanlock.sock"
    away = socket.with_name("away")
    for option in ([], ["--check"]):
        with injected(leased.here, {("START_NEW", "before"): lambda: os.rename(socket, away), ("KILL_NEW", "before"): lambda: os.rename(away, socket)}):
            done = leased.upgrade(*option, check=False)
        assert "sanlock" in (done["findings"] if option else [done["error"]])[0]["hint"], done
    assert leased.alone()["pid"] == before["pid"]


@needs_faults
@needs_old
def test_stays_shared(leased):
    """It cannot be made the one QEMU's alone after an upgrade: it protects as well. The next upgrade tries again; a migration hands it over."""
    away = leased.bed.dir / "away"
    for ends_it in (leased.upgrade, leased.move):
        with injected(leased.here, {("OWN_LEASE", "before"): lambda: os.rename(leased.path, away), ("END", "before"): lambda: os.rename(away, leased.path)}):
            done = leased.upgrade()
        assert "stays shared" in done["warnings"][0], done
        assert leased.parts(leased.here) == {leased.here.status("web1")["pid"]: "SH"}
        ends_it()
        leased.alone()


FORWARD = "NOTE_UPGRADE START_NEW SET_UP_BOTH SHARE_LEASE START_UPGRADE COMMIT_NEW KILL_OLD CONT_NEW ANNOUNCE OWN_LEASE END".split()
SAVING = "SHARE_LEASE START_SAVE SYNC_FILE COMMIT_SAVE KILL_SAVED START_FILL LOAD_FILE USE_UP CONT_NEW OWN_LEASE END".split()[1:]
UPGRADES = [f"in-place:{action}:{when}:{victim}" for action in FORWARD for when in ("before", "after") for victim in ("self", "old", "new", "cancel")]
UPGRADES += [f"in-place:COMMIT_NEW:before:cancel\n{action}:{when}:self" for action in ("KILL_NEW", "SETTLE", "CONT_BACK", "OWN_LEASE", "END") for when in ("before", "after")]
UPGRADES += [f"save:{action}:{when}:{victim}" for action in SAVING for when in ("before", "after") for victim in ("self", "new")]
UPGRADES_SAMPLE = ["in-place:SHARE_LEASE:after:self", "in-place:SHARE_LEASE:after:new", "in-place:COMMIT_NEW:before:new", "in-place:COMMIT_NEW:after:self",
                   "in-place:OWN_LEASE:before:self", "in-place:COMMIT_NEW:before:cancel\nOWN_LEASE:before:self", "save:KILL_SAVED:after:self",
                   "save:LOAD_FILE:after:new"]


@needs_faults
@needs_old
@pytest.mark.parametrize("point", [p if p in UPGRADES_SAMPLE else pytest.param(p, marks=pytest.mark.long) for p in UPGRADES])
def test_upgrade_fault(leased, point):
    """Whoever is killed: the QEMU that has the guest has the lease, alone. A guest that was killed with its QEMU has none."""
    way, _, point = point.partition(":")
    host = leased.here
    fault(host, point)
    done = leased.upgrade(f"--way={way}", check=False)
    assert struck(host), done

    def over():
        now = host.status("web1")
        return not qemus(host) if not now or not now.get("pid") else now["state"] == "running" and not now.get("migration")

    wait_until(over)
    if not qemus(host):
        assert point.split(":")[-1] in ("old", "new"), done
        host.vmferry("start", "web1")
    leased.alone()


@needs_faults
@needs_old
def test_taken_while_a_file_has_the_guest(leased):
    """Another host takes it when no QEMU of ours is there: the guest goes on nowhere, and its file is kept."""
    here, there = leased.here, leased.there
    holder, before = [], leased.alone()["lease"]["generation"]

    def take():
        holder.append(there.popen("sanlock", "client", "command", "-r", f"vms:web1:{leased.path}:{MIB}", "-c", "/bin/sleep", "600"))
        wait_until(lambda: leased.lver() > before)  # written

    with injected(here, {("START_FILL", "before"): take}):
        done = leased.upgrade("--way=save", check=False)
    number = leased.number(there)
    assert done["status"] == "failed" and f"is held by host {number} of vms" in done["error"]["message"], done
    wait_state(here, "gone")
    refused = here.vmferry("start", "web1", check=False)
    assert refused.returncode == 1 and "is held by" in refused.stderr, refused.stderr
    holder[0].kill()
    holder[0].wait()
    wait_until(lambda: not leased.parts(there))
    refused = here.vmferry("start", "web1", check=False)
    assert refused.returncode == 1 and f"was host {number} of vms's, and is free" in refused.stderr, refused.stderr
    os.unlink(done["file"]["path"])
    wait_state(here, "gone")
    here.vmferry("start", "web1")
    leased.alone()


def test_lost(leased):
    """sanlock gives up its place in the lockspace, and kills who has a lease in it."""
    if os.path.exists(OLD):
        leased.upgrade()  # it knows the new one
    here = leased.here
    leased.leave(here)
    wait_until(lambda: not qemus(here))
    assert here.wait_clean() == []
    log = here.vmferry("log", "web1").stdout
    assert "lease lost" in log, log


@pytest.mark.long
@needs_faults
@needs_old
def test_lost_while_two_have_it(leased):
    """It kills both."""
    leased.swap()
    here = leased.here
    small(here, "web1", 5, leased.section(), uuid=UUID, machine=MACHINE)
    here.vmferry("start", "--force", "web1")  # it may have moved from here
    seen = []

    def lose():
        seen.append(len(leased.parts(here)))
        leased.leave(here)
        wait_until(lambda: not qemus(here))

    with injected(here, {("START_UPGRADE", "before"): lose}):
        leased.upgrade(check=False)
    assert seen == [2] and here.wait_clean() == []
    log = here.vmferry("log", "web1").stdout
    assert "lease lost" in log, log
