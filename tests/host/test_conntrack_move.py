# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections of a VM that moves, as the keepers handle them: what is said before, what is not taken and why, what lay there."""

import pytest

from ctlab import until
from testbed import BUILD, Guest, Testbed

CONNTRACK = BUILD / "src/companions/vmferry-conntrack"
NAT = "add table inet nat; add chain inet nat post { type nat hook postrouting priority 100; }"


@pytest.fixture(scope="module")
def bed():
    with Testbed() as bed:
        for host in (bed.a, bed.b):
            host.run("nft", NAT)
        yield bed


@pytest.fixture
def vm(bed, request):
    """A running VM on a; its guest sends nothing by itself that could disturb."""
    guest, name = Guest(request.param), f"web{request.param}"
    bed.a.start(name, guest)
    yield name, guest
    for host in (bed.a, bed.b):
        host.vmferry("kill", name, check=False)
        assert host.wait_clean() == []


def tcp(src, dst, sport, reply_dst=None, mark=0):
    nat = f"-n {reply_dst}" if reply_dst else f"-q {src}"
    return (f"-A -t 300 -u SEEN_REPLY,ASSURED -s {src} -d {dst} -r {dst} {nat} -p tcp --sport {sport} --dport 80 "
            f"--reply-port-src 80 --reply-port-dst {sport} --state ESTABLISHED" + (f" --mark {mark}" if mark else "") + "\n")


def put(host, address, *lines):
    host.run(CONNTRACK, "apply", "--address", address, "--settle=1", input="".join(lines))


def ports(host, address):
    """Source ports of the TCP entries that begin at an address."""
    return {int(word[6:]) for line in host.conntrack("-s", str(address), "-p", "tcp")
            for word in line.split()[:8] if word.startswith("sport=")}


@pytest.mark.parametrize("vm", [21], indirect=True)
def test_old_entries_are_swept(bed, vm):
    """A return trip: what the VM had on b long ago and has no more is deleted, its neighbour's entries are not."""
    name, guest = vm
    neighbour = "10.11.12.13"
    put(bed.a, guest.ip4, tcp(guest.ip4, "192.0.2.1", 4001), tcp(guest.ip4, "192.0.2.1", 4002))
    put(bed.b, guest.ip4, tcp(guest.ip4, "192.0.2.1", 4002), tcp(guest.ip4, "192.0.2.1", 4003),
        tcp(guest.ip4, bed.b.address, 4004))
    put(bed.b, neighbour, tcp(neighbour, "192.0.2.1", 4005))
    result = bed.a.migrate(name, bed.b)
    assert result["conntrack"]["replaced"] == 1 and result["conntrack"]["reasons"] == {}, result["conntrack"]
    until(lambda: bed.b.status(name)["conntrack"]["swept"] == 1)
    assert ports(bed.b, guest.ip4) == {4001, 4002, 4004}
    assert ports(bed.b, neighbour) == {4005}


@pytest.mark.parametrize("vm", [22], indirect=True)
def test_reasons(bed, vm):
    """Marks that are not allowed, and translations from an address of the target: counted by reason, and said in words."""
    name, guest = vm
    put(bed.a, guest.ip4, tcp(guest.ip4, "192.0.2.1", 5001, mark=5), tcp(guest.ip4, "192.0.2.1", 5002, mark=0x105),
        tcp(guest.ip4, "192.0.2.1", 5003, reply_dst=bed.b.address), tcp(guest.ip4, "192.0.2.1", 5004, reply_dst="203.0.113.9"))
    bed.b.write_conf("receive {\n marks-mask = 0xff\n}\n")
    result = bed.a.migrate(name, bed.b)
    assert result["conntrack"]["reasons"] == {"foreign": 1, "without-mark": 1}, result["conntrack"]
    assert "1 entry not taken: 1 foreign" in result["warnings"], result["warnings"]
    assert "1 entry taken without all it had: 1 without-mark" in result["warnings"], result["warnings"]
    assert ports(bed.b, guest.ip4) == {5001, 5002, 5004}
    assert bed.b.status(name)["conntrack"]["reasons"] == {"foreign": 1, "without-mark": 1}


@pytest.mark.parametrize("vm", [23], indirect=True)
def test_told_before(bed, vm):
    """`vmferry check` and the migration say what is in the way on the target before anything moves."""
    name, guest = vm
    put(bed.a, guest.ip4, *(tcp(guest.ip4, "192.0.2.1", 6000 + i) for i in range(5)))
    bed.b.write_conf("receive {\n max-entries = 3\n}\n")
    check = bed.a.vmferry_json("check", name, bed.b.exec_destination())
    said = [f["what"] for f in check["findings"]]
    assert any("takes 3 connections of a VM, this one has 5" in w for w in said), said
    result = bed.a.migrate(name, bed.b)
    assert any("takes 3 connections of a VM, this one has 5" in w for w in result["warnings"]), result["warnings"]
    assert "2 entries not taken: 2 limit" in result["warnings"] and result["conntrack"]["reasons"] == {"limit": 2}, result
    assert len(ports(bed.b, guest.ip4)) == 3
