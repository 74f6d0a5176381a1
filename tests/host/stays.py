# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of migrations that must come to nothing share: a guest with connections, and that all is as it was."""

import contextlib
import os
import select
import time

from testbed import LIMIT, Guest

STREAMS = ["ping,10.0.0.5", "udp,10.0.0.5", "hold,10.0.0.5,count=5"]
GAP = 5000  # ms; the most a guest may lose by a peer's fault: 1.3 s, on a machine that has time for it


def small(host, vm, number, text="", nic={}, **keys):
    """Define a VM with no system in it: it costs next to nothing, and can be moved as well."""
    keys = {"memory": "32M", "kernel": None, "initrd": None, "append": None} | keys
    host.define(vm, Guest(number), text, nic, **keys)


class Stays:
    """web1 with open connections on host a, which stays there whatever is tried."""

    def __init__(self, bed):
        self.bed, self.guest = bed, Guest()
        bed.a.start("web1", self.guest)
        self.uuid = bed.a.status("web1")["uuid"]
        self.boot = bed.ask(self.guest, "bootid")
        self.probe = bed.probe(*STREAMS)

    @contextlib.contextmanager
    def unmoved(self, gap_ms=GAP):
        """Whatever happens in here: web1 runs on a, has lost no connection, and nothing else is left anywhere."""
        before = {host: settled(host) for host in self.bed.hosts}
        self.probe.mark()
        yield self
        for host in self.bed.hosts:
            wait_as_before(host, before[host])
        self.here(gap_ms)

    @contextlib.contextmanager
    def served_anew(self, gap_ms=GAP):
        """The same, but its keeper dies in here."""
        self.probe.mark()
        yield self
        self.here(gap_ms)

    def here(self, gap_ms=GAP):
        assert self.bed.a.status("web1")["state"] == "running"
        for host in self.bed.hosts[1:]:
            there = host.status("web1")
            assert there is None or there.get("uuid") != self.uuid or there["state"] == "shut off", there
        assert self.bed.ask(self.guest, "bootid") == self.boot
        self.probe.assert_alive(gap_ms=gap_ms)


def wait_for_exit(lines, limit=0.05):
    """Wait until one of the processes of these lines of leftovers() ends."""
    fds = []
    for line in lines:
        with contextlib.suppress(OSError, ValueError):
            fds.append(os.pidfd_open(int(line.split()[1].rstrip(":"))))
    select.select(fds, [], [], limit)
    for fd in fds:
        os.close(fd)


def has_guest(host, vm):
    return (host.runtime / vm / "console").exists()


def settled(host, limit=LIMIT):
    """What is there when keepers that only looked after a refused migration have gone."""
    end = time.monotonic() + limit
    while leaving := [line for line in host.leftovers() if "--incoming" in line and not has_guest(host, line.split()[-1])]:
        assert time.monotonic() < end, f"on {host.name}: {leaving}"
        wait_for_exit(leaving)
    return host.leftovers()


def wait_as_before(host, before, limit=LIMIT):
    """Until a host has the same processes, files, links and ports again."""
    end = time.monotonic() + limit
    while set(found := host.leftovers()) != set(before):
        new = [line for line in found if line not in before]
        gone = [line for line in before if line not in found]
        assert time.monotonic() < end, f"on {host.name}: new: {new}; gone: {gone}"
        wait_for_exit(new)  # what is to go, goes with a process
