# SPDX-License-Identifier: GPL-2.0-or-later
"""vmferry-libvirt with what hosts without shared storage, and hosts that trust no network, give virsh: all of it is passed on."""

import os
import shutil
import subprocess

import pytest

from libvirtlab import LIBVIRTD, Libvirt
from test_libvirt import GUEST, Pair, wait_until
from testbed import Testbed

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists(LIBVIRTD) or not shutil.which("virsh"), reason="no libvirt"),
    pytest.mark.long,
]


def image(path, *words):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, path, "64M"], check=True)
    return path


def fill(path, pattern, at):
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {at} 1M", path], check=True, capture_output=True)


class Disks:
    """Two disks of a guest, each host's under another path: one of its own, one over a base that both have."""

    def __init__(self, bed):
        self.base = image(bed.dir / "base.qcow2")
        fill(self.base, 7, "8M")
        self.of = {name: [bed.dir / f"{name}-vda.qcow2", bed.dir / f"{name}-vdb.qcow2"] for name in ("a", "b")}
        self.make("a")
        for i, path in enumerate(self.of["a"]):
            fill(path, 17 + i, "32M")

    def make(self, name):
        image(self.of[name][0])
        image(self.of[name][1], "-b", self.base, "-F", "qcow2")

    def same(self):
        for a, b in zip(*self.of.values()):
            subprocess.run(["qemu-img", "compare", "-q", "-U", a, b], check=True)


class Ways(Pair):
    def __init__(self, bed):  # not Pair's: TLS, and a guest with disks
        self.bed, self.a, self.b = bed, Libvirt(bed.a, tls=True), Libvirt(bed.b, tls=True)
        self.disks = Disks(bed)
        self.a.start(guest=GUEST, addresses=[GUEST.ip4, GUEST.ip6], disks=self.disks.of["a"])

    def definition(self, target):
        """--xml: what stands at other paths there."""
        path = self.bed.dir / "moved.xml"
        source = next(libvirt for libvirt in (self.a, self.b) if libvirt is not target)
        text = source.virsh("dumpxml", "--migratable", "web1").stdout
        for here, there in zip(self.disks.of[source.host.name], self.disks.of[target.host.name]):
            text = text.replace(str(here), str(there))
        path.write_text(text)
        return path


@pytest.fixture(scope="module")
def ways():
    with Testbed(ct_events=1) as bed:
        yield Ways(bed)


@pytest.mark.parametrize("options", [
    ["--copy-storage-all", "--migrate-disks", "vda,vdb"],
    ["--copy-storage-inc", "--migrate-disks=vda,vdb", "--p2p"],
    ["--copy-storage-all", "--p2p", "--tls", "--migrate-disks=vda,vdb", "--tls-destination=b.invalid"],
    ["--copy-storage-inc", "--tls", "--migrate-disks", "vda,vdb", "--parallel", "--parallel-connections", "2", "--tls-destination", "{target}"],
], ids=["all", "inc-p2p", "wrong-name", "inc-tls-parallel"])
def test_disks_and_tls(ways, options):
    source, target = ways.ends()
    ways.disks.make(target.host.name)
    with ways.bed.probe(f"ping,{GUEST.ip4}", f"ping,{GUEST.ip6}", f"hold,{GUEST.ip4},count=50") as streams:
        streams.mark()
        name = f"{target.host.name}.{ways.bed.prefix}"
        words = ["--xml", ways.definition(target), *(word.format(target=name) for word in options), "--verbose"]
        if "--tls-destination=b.invalid" in options:
            said = ways.move(*words, check=False)
            assert "ertificate" in said and source.state() == "running" and target.state() is None, said
            assert ways.entries(target) == []
        else:
            said = ways.move(*words)
            assert said["connections"] == "done" and said["gate"] == "complete" and said["applied"] >= 52, said
            wait_until(lambda: ways.entries(source) == [])
            ways.disks.same()
        streams.assert_alive()
    ways.nothing_left(source, target)
