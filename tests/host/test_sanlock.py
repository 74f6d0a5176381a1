# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases by sanlock: a real daemon on each host, with a lockspace in a file that both see (no watchdog, short I/O timeout)."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from stays import small
from test_lease import UUID, fault, kill_keeper, needs_faults, settled, struck, wait_state
from testbed import BUILD, Testbed, section, wait_until

pytestmark = pytest.mark.skipif(not shutil.which("sanlock") or not any(BUILD.rglob("*lease_sanlock.c.o")),
                                reason="needs sanlock, and a build with it")

MIB = 1 << 20


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
        small(host, "web1", 5, self.section(**keys), uuid=UUID)
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

    def lease(self, host):
        return host.status("web1")["lease"]

    def swap(self):
        self.here, self.there = self.there, self.here


@pytest.fixture(scope="module")
def bed():
    with Testbed() as bed:
        for host in bed.hosts:
            host.write_conf("deadlines { connect = 5 prepare = 10 switchover = 3 finish = 3 link = 3 }\n")
        yield bed


@pytest.fixture(scope="module")
def leased(bed):
    return Sanlock(bed)


def test_life(leased):
    """Taken at the start, given back at pause and end, taken as it was left; the other host is told who has it."""
    a, b = leased.here, leased.there
    refused = leased.start(a, check=False, offset="2M")
    assert refused.returncode == 1 and "there is no resource web1 of the lockspace vms" in refused.stderr
    refused = leased.start(a, check=False, lockspace="none")
    assert refused.returncode == 1 and "has not joined the lockspace none" in refused.stderr
    leased.start(a)
    assert leased.holder() == ("a", 1) and leased.lease(a)["held"]
    refused = leased.start(b, check=False)
    assert refused.returncode == 1 and "is held by host 1 of vms" in refused.stderr, refused.stderr
    kill_keeper(a)
    assert leased.lease(a) == {"driver": "sanlock", "path": str(leased.path), "held": True, "generation": 1}
    a.vmferry("pause", "web1")
    assert leased.holder() == (None, 1)
    a.vmferry("resume", "web1")
    assert leased.holder() == ("a", 2)
    a.vmferry("pause", "web1")
    leased.start(b)
    assert leased.holder() == ("b", 3)
    refused = a.vmferry("resume", "web1", check=False)
    assert refused.returncode == 1 and "is held by host 2 of vms" in refused.stderr, refused.stderr
    b.vmferry("kill", "web1")
    wait_state(b, "gone")
    wait_until(lambda: leased.holder() == (None, 3))
    refused = a.vmferry("resume", "web1", check=False)
    assert refused.returncode == 1 and "was host 2 of vms's, and is free" in refused.stderr, refused.stderr
    a.vmferry("kill", "web1")
    (b.config / "vms" / "web1.vm").unlink()
    shutil.rmtree(b.state / "web1")


def test_there_and_back(leased):
    leased.start(leased.here)
    before = leased.lver()
    for n in (1, 2):
        leased.here.migrate("web1", leased.there, "--transport=tcp")
        leased.swap()
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


def test_no_upgrade(leased):
    """The daemon knows one process, and would watch over the wrong one: refused, and said by a check."""
    here = leased.here
    pid = here.status("web1")["pid"]
    done = here.vmferry("upgrade", "web1", "--check", "--json", check=False)
    assert done.returncode == 1 and "sanlock" in json.loads(done.stdout)["findings"][0]["what"], done
    done = here.vmferry("upgrade", "web1", check=False)
    assert done.returncode == 1 and "sanlock" in done.stderr, done
    assert here.status("web1")["pid"] == pid and leased.holder()[0] == here.name


def test_lost(leased):
    """sanlock gives up its place in the lockspace, and kills who has a lease in it."""
    here, there = leased.here, leased.there
    pid = here.status("web1")["pid"]
    number = 1 if here is leased.bed.a else 2
    leased.client(here, "rem_lockspace", "-s", f"vms:{number}:{leased.path}:0")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert here.wait_clean() == []
    log = here.vmferry("log", "web1").stdout
    assert "lease lost" in log, log
