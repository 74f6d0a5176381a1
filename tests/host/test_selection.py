# SPDX-License-Identifier: GPL-2.0-or-later
"""Which connections are a VM's, as its definition says: by address, mark and zone; and those that cannot come along."""

import pytest

from testbed import BUILD, Guest, Testbed

CONNTRACK = BUILD / "src/companions/vmferry-conntrack"

# The same on both hosts: all that is bridged is tracked in zone 7, and marked.
ZONE = """
table inet selection {
    chain first { type filter hook prerouting priority raw; ct zone set 7; }
    chain forward { type filter hook forward priority -10; ct mark set 0x107; }
}
"""


@pytest.fixture(scope="module")
def bed():
    with Testbed() as bed:
        for host in (bed.a, bed.b):
            host.run("nft", "-f", "-", input=ZONE)
            host.write_conf("receive {\n marks-mask = 0xff00\n}\n")
        yield bed


@pytest.fixture
def vm(bed, request):
    """A VM on a with a section conntrack of its own."""
    number, text, nic = request.param
    guest, name = Guest(number), f"web{number}"
    bed.a.start(name, guest, text=text, nic=nic)
    yield name, guest
    for host in (bed.a, bed.b):
        host.vmferry("kill", name, check=False)
        assert host.wait_clean() == []


def section(text):
    return f"conntrack {{ {text} }}\n"


@pytest.mark.parametrize("vm", [
    (6, section('mark = "0x100/0xff00"'), {}),
    (7, section('zone = 7 mark = "0x100/0xff00"'), {}),
], indirect=True)
def test_selected(bed, vm):
    name, guest = vm
    with bed.probe(f"ping,{guest.ip4}", f"ping,{guest.ip6}") as probe:
        probe.mark()
        result = bed.a.migrate(name, bed.b)
        probe.assert_alive()
    assert result["conntrack"]["followed"] >= 2 and result["conntrack"]["applied"] == result["conntrack"]["followed"], result
    assert bed.b.conntrack("-s", str(guest.ip4), "--zone", "7") or bed.b.conntrack("-d", str(guest.ip4), "--zone", "7")


@pytest.mark.parametrize("vm", [(8, section('zone = 7 mark = "0x200/0xff00"'), {})], indirect=True)
def test_not_selected(bed, vm):
    name, guest = vm
    with bed.probe(f"ping,{guest.ip4}"):
        assert bed.a.migrate(name, bed.b)["conntrack"]["followed"] == 0


@pytest.mark.parametrize("vm", [(10, section("zone = 7"), {"addresses": None})], indirect=True)
def test_without_addresses(bed, vm):
    """By zone alone: the target takes what could be anybody's only where it says so."""
    name, guest = vm
    with bed.probe(f"ping,{guest.ip4}") as probe:
        probe.mark()
        bed.a.write_conf("receive {\n any-address = true\n}\n")
        result = bed.a.migrate(name, bed.b)
        assert result["conntrack"]["applied"] == 0 and any("any-address" in w for w in result["warnings"]), result
    with bed.probe(f"ping,{guest.ip4}") as probe:
        probe.mark()
        assert bed.b.migrate(name, bed.a)["conntrack"]["applied"] >= 1
        probe.assert_alive()


@pytest.mark.parametrize("vm", [(11, "", {})], indirect=True)
def test_masqueraded(bed, vm):
    """What is translated to the old host's own address is told before it is missed."""
    name, guest = vm
    line = (f"-A -s {guest.ip4} -d 192.0.2.9 -r 192.0.2.9 -n {bed.a.address} -p tcp --sport 4000 --dport 80 "
            "--reply-port-src 80 --reply-port-dst 4000 -t 300 -u SEEN_REPLY,ASSURED --state ESTABLISHED\n")
    bed.a.run("nft", "add table inet nat; add chain inet nat post { type nat hook postrouting priority 100; }")
    bed.a.run(CONNTRACK, "apply", "--address", guest.ip4, "--settle=1", input=line)
    result = bed.a.migrate(name, bed.b)
    assert any("1 connection is translated to an address of this host" in w for w in result["warnings"]), result
