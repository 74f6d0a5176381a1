# SPDX-License-Identifier: GPL-2.0-or-later
"""Many upgrades of one guest, and of many guests at a time: whatever it had in memory, on disk and open is as it was."""

import contextlib
import json
import os
import re
import select
import socket
import time

import pytest
from netns import command
from testbed import LIMIT, Guest, Testbed, qemu, section

OLD = "/usr/bin/qemu-system-x86_64"
MACHINE = "pc-q35-7.2"  # what both know
CONF = "deadlines {\n connect = 60\n prepare = 60\n link = 60\n}\n"  # nothing here is about these

pytestmark = pytest.mark.skipif(not os.path.exists(OLD), reason="needs Debian's QEMU 7.2 beside 10.0")


@pytest.fixture(scope="module")
def bed():
    with Testbed(sshd=False) as bed:
        bed.a.write_conf(CONF)
        yield bed


def shell(host, vm, line):
    """What the shell on the guest's console prints; $MARK in the line is where its answer begins."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.connect(str(host.runtime / vm / "console"))
        s.sendall(f"M=an; {line.replace('$MARK', '${M}swer:')}\n".encode())  # the echo of the line is no answer
        got, end = b"", time.monotonic() + LIMIT
        while not (found := re.search(rb"answer:(.*?)\r?\n", got)):
            assert select.select([s], [], [], max(0, end - time.monotonic()))[0], f"no answer on the console: {got[-500:]!r}"
            data = s.recv(4096)
            assert data, "the console was closed"
            got += data
        return found[1].decode().strip()


class Kept:
    """A guest with what is to be the same afterwards: files in memory and on disk, written memory, the boot, connections."""

    def __init__(self, bed, name, number, streams=()):
        self.bed, self.host, self.name, self.guest = bed, bed.a, name, Guest(number)
        image = self.host.dir / f"{name}.qcow2"
        command("qemu-img", "create", "-q", "-f", "qcow2", str(image), "64M")
        disk = section("disk vda", file=str(image), format="qcow2", bus="virtio", cache="none", shared=True)
        bed.a.start(name, self.guest, text=disk, machine=MACHINE, binary=OLD, memory="128M")
        self.sums = shell(self.host, name, "dd if=/dev/urandom of=/file bs=64k count=8 2>/dev/null; "
                          f"dd if=/file of=/dev/vda bs=64k conv=fsync 2>/dev/null; echo $MARK {self.SUMS}")  # fmt: skip
        assert re.fullmatch(r"([0-9a-f]{32}) \1", self.sums), self.sums
        bed.ask(self.guest, "fill 32")
        self.boot = bed.ask(self.guest, "bootid")
        self.probe = bed.probe(f"hold,{self.guest.ip4},count=5", f"ping,{self.guest.ip4},interval=50", *streams)

    def write(self, mib):
        """From now on to its memory, so much a second (0: no more); a guest that does not costs next to nothing."""
        self.bed.ask(self.guest, f"dirty {mib}" if mib else "stop")

    SUMS = "$(echo 3 >/proc/sys/vm/drop_caches; for f in /file /dev/vda; do head -c 524288 $f | md5sum | cut -c1-32; done)"

    def same(self):
        assert self.bed.ask(self.guest, "bootid") == self.boot
        self.probe.assert_alive(LIMIT)
        self.write(0)
        words = self.bed.ask(self.guest, "check").split()
        assert int(words[2]) > 0, "nothing was written meanwhile"
        assert shell(self.host, self.name, f"echo $MARK {self.SUMS}") == self.sums
        assert len([line for line in self.host.processes().values() if f"guest={self.name}," in line]) == 1

    def end(self):
        self.probe.close()
        self.host.vmferry("kill", self.name, check=False)
        assert self.host.wait_clean(self.name) == []


@pytest.mark.parametrize("times", [6, pytest.param(50, marks=pytest.mark.long)])
def test_one_guest_many_times(bed, times):
    """To and fro; it writes to its memory all the time, and sends and gets bytes that are looked at."""
    one = Kept(bed, "often", 10, ["bulk,10.0.0.10,pace=2000000", "udp,10.0.0.10"])
    one.write(25)
    for number in range(times):
        done = bed.a.vmferry_json("upgrade", "often", "--binary", OLD if number % 2 else qemu())
        assert done["status"] == "completed" and done["to"]["version"].startswith("7.2" if number % 2 else "10.")
    one.same()
    one.end()


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.long)])
def test_many_guests_at_a_time(bed, count):
    many = [Kept(bed, f"many{n}", 20 + n) for n in range(count)]
    before = {one.name: bed.a.status(one.name)["pid"] for one in many}
    for one in many:
        one.write(3)
    done = bed.a.vmferry("upgrade", "--all", "--parallel=4", "--binary", qemu(), "--json", timeout=10 * LIMIT)
    results = {r["vm"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert set(results) == set(before) and all(r["status"] == "completed" for r in results.values()), results
    for one in many:
        one.write(0)
    for one in many:
        after = bed.a.status(one.name)
        assert after["state"] == "running" and after["qemu_version"].startswith("10.") and after["pid"] != before[one.name]
        one.same()
    for one in many:
        one.end()


def keeper(host, name):
    """The process that holds the VM's control socket: not its parent, which only restarts it."""
    (pid,) = [pid for pid, line in host.processes().items() if line.endswith(f" {name}") and " run " in line and "--parent" not in line]
    return pid


def inotify_watches(pid):
    """The highest watch number of each inotify descriptor; a new descriptor begins with 1."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/fdinfo/{name}") as f:
            found += re.findall(r"^inotify wd:([0-9a-f]+)", f.read(), re.M)
    return [int(wd, 16) for wd in found]


def test_nothing_is_closed_that_the_kernel_waits_for(bed):
    """Between STOP and RESUME: the end of an inotify descriptor waits for a grace period, 10 ms and more."""
    bed.a.define("waits", Guest(40), memory="32M", kernel=None, initrd=None, append=None, machine=MACHINE, binary=OLD)
    bed.a.vmferry("start", "waits")
    pid, seen = keeper(bed.a, "waits"), []
    for binary in (qemu(), OLD):
        bed.a.vmferry("upgrade", "waits", "--binary", binary)
        seen.append(inotify_watches(pid))
    assert keeper(bed.a, "waits") == pid
    assert len(seen[0]) == len(seen[1]) and max(seen[1]) > max(seen[0]) > 1, seen
    bed.a.vmferry("kill", "waits")
    assert bed.a.wait_clean("waits") == []
