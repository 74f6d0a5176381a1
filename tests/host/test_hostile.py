# SPDX-License-Identifier: GPL-2.0-or-later
"""The other host lies: a source that forges what it says to `vmferry receive`, a target that answers as it likes.

One host, a, with a guest that has open connections and must notice none of it; rawpeer.py is the other host.
"""

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import re
import select
import shutil
import signal
import struct
import sys
import time

import pytest
import rawpeer
from rawpeer import Closed, Peer, Refused, batch, new_id, record
import stays
from stays import GAP, Stays
from testbed import BUILD, LIMIT, Testbed, build_option, qemu, section, words, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (BUILD / "src/cli/vmferry").exists(), reason="vmferry is not built"),
]
FAR = "10.99.0.254"  # where the lying target is
DEADLINES = section("deadlines", connect=4, prepare=4, no_progress=10, switchover=4, finish=2, link=4)
UUID = "11111111-2222-4333-8444-555555555555"


@pytest.fixture(scope="module")
def bed():
    with Testbed(hosts=("a",), sshd=False) as bed:
        images = bed.dir / "images"
        images.mkdir()
        (images / "way-out").symlink_to("/etc")
        policy = section("receive", prefixes=["10.0.0.0/24", "fd00::/64"], bridges=["br0"], disk_paths=[images], max_memory="8T",
                         max_entries=10000)  # fmt: skip
        bed.a.write_conf(DEADLINES + policy)
        yield bed


@pytest.fixture(scope="module")
def vm(bed):
    return Stays(bed)


@pytest.fixture(autouse=True)
def quiet(request, bed, vm):
    """After every test all is as it was before it: the guest, processes, files, links, ports. No log line is forged."""
    gap = request.node.get_closest_marker("gap")
    stays = vm.unmoved if not request.node.get_closest_marker("new_keeper") else vm.served_anew
    with stays(gap_ms=gap.args[0] if gap else GAP):
        yield
    for path in [*bed.a.state.rglob("log"), *bed.a.state.rglob("stderr")]:
        for line in path.read_text().splitlines():
            assert "\x1b" not in line and not line.startswith("evil"), (path, line)
    for name in [p.name for p in bed.a.state.iterdir() if p.name != "web1"]:
        shutil.rmtree(bed.a.state / name)


@contextlib.contextmanager
def conf_of(host, text):
    """Another host.conf for keepers that start in here."""
    conf = host.config / "host.conf"
    usual = conf.read_text()
    host.write_conf(text)
    try:
        yield
    finally:
        conf.write_text(usual)


def numbered():
    """Names of parameters that are no names."""
    return map(str, itertools.count())


# ---- a source that lies ----


def definition(nic={}, text="", **change):
    keys = {"uuid": UUID, "machine": "q35", "cpu": "qemu64", "accel": "tcg", "memory": "32M", "binary": qemu()} | change
    nic = {"bridge": "br0", "mac": "52:54:00:12:34:4d", "addresses": ["10.0.0.77"]} | nic
    return words(**keys) + section("nic net0", **nic) + text


def cookie(peer, **change):
    """An honest Prepare, but for what is given."""
    return {
        "id": peer.id, "uuid": UUID, "definition": definition(), "run_state": "running", "transport": "tunnel",
        "token": "0123456789abcdef" * 2, "conntrack": True, "qemu_version": "10.0.2",
    } | change  # fmt: skip


@pytest.fixture
def peer(bed):
    """A source whose Hello was accepted, for a VM that is not here. Its keeper lives through all that a test does."""
    with Peer(bed.a, "new1") as peer:
        peer.hello()
        yield peer
        assert peer.call("Ping") == []


def qemus(bed):
    return [line for line in bed.a.processes().values() if "guest=new1" in line]


def test_check_leaves_nothing(bed, peer):
    """The contrast to all that follows: this one is taken."""
    assert "token" not in peer.prepare(**cookie(peer, check_only=True))
    assert qemus(bed) == []


DISK = {"format": "raw", "shared": True}


@pytest.mark.parametrize("change, said, hint", [
    ({"id": "0" * 32}, "names another migration", ""),
    ({"id": "../../../etc/passwd"}, "names another migration", ""),
    ({"id": None}, "Prepare: field id is missing", ""),
    ({"id": ("u", 7)}, "field id is of the wrong type", ""),
    ({"uuid": "11111111-2222-4333-8444-000000000000"}, "uuid is not the migration's", ""),
    ({"uuid": "11111111-2222-4333-8444-555555555555\n"}, "field uuid is over its limit", ""),
    ({"definition": definition(uuid=None)}, "uuid is not the migration's", ""),
    ({"definition": definition({"mac": None})}, "nic net0 has no MAC", ""),
    ({"definition": definition({"addresses": ["10.1.0.5"]})}, "nic net0: address 10.1.0.5", "receive { prefixes }"),
    ({"definition": definition({"addresses": ["fd01::5"]})}, "nic net0: address fd01::5", "receive { prefixes }"),
    ({"definition": definition({"addresses": ["10.0.0.5"]})}, "address 10.0.0.5 belongs to the VM web1", "vmferry show web1"),
    ({"definition": definition({"addresses": ["fd00:0:0::0005"]})}, "address fd00::5 belongs to the VM web1", "vmferry show web1"),
    ({"definition": definition({"mac": "52:54:00:12:34:05"})}, "MAC 52:54:00:12:34:05 belongs to the VM web1", "vmferry show web1"),
    ({"definition": definition({"bridge": "mig0"})}, "bridge mig0", "receive { bridges }"),
    ({"definition": definition({"bridge": "br0;id"})}, "br0;id", "15 at most"),
    ({"definition": definition({"bridge": "../br0"})}, "../br0", "15 at most"),
    ({"definition": definition(memory="4T")}, "4194352 MiB wanted", "stop or move another VM"),
    ({"definition": definition(memory="16T")}, "more than 8388608 MiB", "receive { max-memory }"),
    ({"definition": definition(kernel="/etc/shadow")}, "kernel: /etc/shadow", "receive { disk-paths }"),
    ({"definition": definition(firmware="/proc/self/environ")}, "firmware: /proc/self/environ", "receive { disk-paths }"),
    ({"definition": definition(qemu_args=["-monitor", "stdio"])}, "qemu-args", "receive { qemu-args }"),
    ({"definition": definition(machine="q35,accel=kvm")}, "q35,accel=kvm", "q35"),
    ({"definition": definition(cpu="max,+x -S")}, "max,+x -S", ""),
    ({"definition": definition(text=section("disk d0", file="/etc/passwd", **DISK))}, "disk d0: file: /etc/passwd", "disk-paths"),
    ({"definition": definition(text=section("disk d0", file="IMAGES/../../../etc/passwd", **DISK))}, "disk d0: file", "paths with .."),
    ({"definition": definition(text=section("disk d0", file="IMAGES/way-out/passwd", **DISK))}, "disk d0: file", "links that lead out"),
    ({"definition": definition(text=section("disk d0", file="IMAGES/${HOME}/x", **DISK))}, '"${" is not allowed', "environment"),
    ({"definition": definition(text=section("disk d0", file="IMAGES/x,readonly=off", **DISK))}, "x,readonly=off", "mounted"),
    ({"definition": definition(text=section("disk d0", file="IMAGES/none", format="raw"))}, "disk d0 is not shared", "shared = true"),
    ({"definition": definition() + "\n}\n"}, "definition from the source:", ""),
    ({"definition": definition() + "evil = 1\n"}, "evil", ""),
    ({"definition": definition() + "\x1b[2J\n"}, "control character 0x1b", ""),
    ({"definition": definition() + 'kernel = "/a\nb"\n'}, "definition from the source:", ""),
    ({"definition": "x" * 65537}, "field definition is over its limit", ""),
    ({"definition": "{" * 60000}, "definition from the source:1", ""),
    ({"definition": ""}, "memory", ""),
    ({"transport": "smoke"}, "transport 'smoke' is unknown", ""),
    ({"transport": "a\nforged"}, "field transport has characters", ""),
    ({"transport": "tls"}, "tls without its key", ""),
    ({"transport": "tls", "psk": "0" * 63}, "tls without its key", ""),
    ({"transport": "tls", "psk": "0" * 63 + "G"}, "tls without its key", ""),
    ({"transport": "tls", "psk": "0" * 62 + "\n0"}, "field psk has characters", ""),
    ({"token": "x"}, "malformed token", ""),
    ({"token": "0" * 31 + "\n"}, "field token has characters", ""),
    ({"run_state": "dead"}, "run state 'dead' is unknown", ""),
    ({"channels": 17}, "field channels is over its limit", ""),
    ({"channels": "2"}, "field channels is of the wrong type", ""),
    ({"disk_proofs": ["x"]}, "malformed proof", ""),
    ({"disk_proofs": ["d9 1 1 -"]}, "proof of a disk that the definition does not have", ""),
    ({"disk_proofs": ["d0 1 1 -"] * 65}, "field disk_proofs is over its limit", ""),
    ({"disk_proofs": ["d" * 257]}, "field disk_proofs is over its limit", ""),
    ({"mandatory": ["conntrack", "teleport"]}, "requires the feature 'teleport'", "same version"),
    ({"mandatory": ["\x1b[2J\nevil"]}, "field mandatory has characters", ""),
    ({f"x{i}": "" for i in range(130)}, "more than 128 entries", ""),
])  # fmt: skip
def test_forged_prepare(bed, peer, change, said, hint):
    change = {k: v.replace("IMAGES", str(bed.dir / "images")) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(Refused) as refused:
        peer.prepare(**cookie(peer, **change))
    assert said in refused.value.text and hint in refused.value.hint, refused.value
    assert "\x1b" not in str(refused.value) and refused.value.hint.count("\n") == 0
    assert qemus(bed) == [] and peer.outcome()["outcome"] == "never"


def test_field_twice(bed, peer):
    entries = [("id", peer.id), ("uuid", UUID), ("uuid", UUID)]
    with pytest.raises(Refused, match="field uuid comes twice"):
        peer.call("Prepare", "a{sv}", entries)


@pytest.mark.parametrize("change, said", [
    ({"vm": "web1"}, "names another VM"),
    ({"id": "0" * 32}, "names another VM or migration"),
    ({"host_id": "HERE", "host_name": "a"}, "source and target are the same host, a"),
    ({"host_id": "HERE", "host_name": "x"}, "hosts x and a have the same host id"),
    ({"host_name": "x\x1b[2J\nevil"}, "field host_name has characters"),
    ({"host_name": None}, "field host_name is missing"),
    ({"host_name": "x" * 257}, "field host_name is over its limit"),
    ({"mandatory": ["teleport"]}, "requires the feature 'teleport'"),
    ({"version": ("i", 1)}, "field version is of the wrong type"),
    ({"version": 0}, "speaks version 0 of the protocol, this one version 1"),
    ({"version": 2, "least": 2}, "speaks version 2 of the protocol, this one version 1"),
    ({"version": 1, "least": 2}, "speaks version 1 of the protocol"),
    ({"version": 2**32, "least": 1}, "field version is over its limit"),
])  # fmt: skip
def test_forged_hello(bed, change, said):
    change = {k: f"a.{bed.prefix}" if v == "HERE" else v for k, v in change.items()}
    with Peer(bed.a, "new1") as peer:
        with pytest.raises(Refused) as refused:
            peer.hello(**change)
        assert said in refused.value.text, refused.value
        with pytest.raises(Refused, match="Prepare came before Hello"):
            peer.prepare(**cookie(peer))


def test_order_of_calls(bed, peer):
    """Nothing of a migration that did not begin can be done, and what is not known has never run."""
    for call in (("Delta", "bay", True, b""), ("Delta", "bay", False, batch(record("10.0.0.5", "10.0.0.100")))):
        with pytest.raises(Refused, match="Delta outside a migration"):
            peer.call(*call)
    assert peer.call("Finish", "a{sv}", {"id": peer.id, "since_stop_usec": 0})[0]["outcome"] == "never"
    assert peer.call("Abort", "s", peer.id) == [] and peer.call("Forget", "s", peer.id) == []
    for bad in ("", "x", "0" * 31, "A" * 32, "../" * 10 + "ab"):
        for member in ("Outcome", "Abort", "Forget"):
            with pytest.raises(Refused, match="another migration"):
                peer.call(member, "s", bad)
    with pytest.raises(Refused, match="Finish: field id is missing"):
        peer.call("Finish", "a{sv}", {"since_stop_usec": 0})
    for call in (("Hello", "s", "x"), ("Nonsense",), ("Delta", "ay", b"x"), ("Outcome", "as", ["x"])):
        with pytest.raises(Refused):
            peer.call(*call)
    for place in ({"path": "/"}, {"path": "/org/vmferry/vm", "interface": "org.vmferry.VM1"}, {"interface": "org.vmferry.VM1"}):
        with pytest.raises(Refused):
            peer.call("Kill", **place)


def test_never_stays_never(bed, peer):
    assert peer.outcome()["outcome"] == "never"
    with Peer(bed.a, "new1", id=peer.id) as late:
        late.hello()
        with pytest.raises(Refused, match="over already"):
            late.prepare(**cookie(late))
        for _ in range(3):
            assert late.outcome()["outcome"] == "never"


def test_records_do_not_wear_out(bed):
    """Whatever a stranger asks, what decides who may run web1 stays."""
    for _ in range(40):
        with Peer(bed.a, "web1") as stranger:
            assert stranger.outcome()["outcome"] == "never"
    done = bed.a.vmferry("check", "web1", "exec:true", check=False)
    assert "ended with status 0" in done.stdout and "not this host's" not in done.stdout + done.stderr, done


@pytest.fixture
def begun(bed, peer):
    """A migration whose Prepare was taken: there is a QEMU."""
    reply = peer.prepare(**cookie(peer))
    assert reply["token"] and len(qemus(bed)) == 1
    peer.reply = reply
    return peer


def test_given_up(bed, begun):
    for call in (("Abort", "s", new_id()), ("Outcome", "s", new_id()), ("Finish", "a{sv}", {"id": new_id(), "since_stop_usec": 0})):
        with pytest.raises(Refused, match="another migration"):
            begun.call(*call)
    assert len(qemus(bed)) == 1
    with Peer(bed.a, "new1") as other:
        assert other.call("Abort", "s", other.id) == [] and other.outcome()["outcome"] == "never" and len(qemus(bed)) == 1
    assert begun.outcome()["outcome"] == "never" and qemus(bed) == []
    with pytest.raises(Refused, match="over already"):
        begun.prepare(**cookie(begun))


def test_finish_without_data(bed, begun):
    """Nothing was loaded: it cannot run, whatever the source says about it."""
    found = begun.call("Finish", "a{sv}", {"id": begun.id, "since_stop_usec": 2**64 - 1})[0]
    assert found["outcome"] == "never" and qemus(bed) == []


def test_foreign_connections(bed, begun):
    """Entries of others are refused and counted, and the firewall here has no hole for them."""
    mine, theirs = record("10.0.0.77", "10.0.0.100", 4001), record("10.0.0.5", "10.0.0.100", 4002)
    begun.call("Delta", "bay", False, batch(mine, theirs, record("10.9.9.9", "10.8.8.8", 4003)))
    found = bed.a.run("conntrack", "-L").stdout
    assert "sport=4001" in found and "sport=4002" not in found and "sport=4003" not in found
    reply = begun.outcome()
    assert (reply["ct_received"], reply["ct_applied"], reply["ct_refused"]) == (3, 0, 2), reply  # taken back
    assert "10.0.0.5" in reply["ct_first_refused"] or "10.9.9.9" in reply["ct_first_refused"]
    assert "sport=400" not in bed.a.run("conntrack", "-L").stdout


@pytest.mark.parametrize("data, said", [
    (b"garbage" * 100, ""),
    (batch(record("10.0.0.77", "10.0.0.100"))[:-1], ""),
    (batch(record("10.0.0.77", "10.0.0.100")) + b"\0", ""),
    (b"VFCT\2" + batch(record("10.0.0.77", "10.0.0.100"))[5:], ""),
    (b"VFCT\1\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", ""),
    (bytes(512 * 1024 + 1), "size limit"),
], ids=numbered())  # fmt: skip
def test_garbage_as_connections(bed, begun, data, said):
    before = bed.a.run("conntrack", "-L", "-d", "10.0.0.77").stdout
    with pytest.raises(Refused) as refused:
        begun.call("Delta", "bay", False, data)
    assert said in refused.value.text
    assert bed.a.run("conntrack", "-L", "-d", "10.0.0.77").stdout == before
    assert begun.outcome()["outcome"] == "never"


def test_more_connections_than_allowed(bed, begun):
    for first in range(1, 12001, 4000):
        begun.call("Delta", "bay", False, batch(*[record("10.0.0.77", "10.0.0.100", first + n) for n in range(4000)]))
    assert len(bed.a.conntrack("-s", "10.0.0.77")) == 10000
    assert begun.outcome()["ct_refused"] == 2000
    assert bed.a.conntrack("-s", "10.0.0.77") == []


@pytest.mark.parametrize("line, said", [
    ("vmferry/1 data new1 {id} {wrong}", "no migration here"),
    ("vmferry/1 data new1 {wrong} {token}", "no migration here"),
    ("vmferry/1 data new1 {id} -", "without its token"),
    ("vmferry/1 data new1 {id}", "without its token"),
    ("vmferry/1 data web1 {id} {token}", "no migration here"),
    ("vmferry/1 data new2 {id} {token}", "no keeper of new2"),
])  # fmt: skip
def test_data_of_somebody_else(bed, begun, line, said):
    text = line.format(id=begun.id, token="0123456789abcdef" * 2, wrong=new_id())
    with Peer(bed.a, "new1", line=text.encode() + b"\n", bus=False) as data:
        assert said in data.line()
        assert data.wait_closed()
    assert len(qemus(bed)) == 1
    begun.outcome()


QEVM = b"QEVM\0\0\0\3"


@pytest.mark.parametrize("data", [
    b"", b"\0" * 4096, QEVM, QEVM + b"\x07\0\0\0\4evil" + b"\xff" * 4096, b"GET / HTTP/1.1\r\n\r\n",
], ids=numbered())  # fmt: skip
def test_garbage_as_memory(bed, begun, data):
    """QEMU has what it was sent with the right token, and fails on it; its end is the migration's."""
    text = f"vmferry/1 data new1 {begun.id} {'0123456789abcdef' * 2}\n"
    with Peer(bed.a, "new1", line=text.encode(), bus=False) as stream:
        assert stream.line() == f"vmferry/1 ok {begun.reply['token']}"
        stream.send(data)
    found = begun.call("Finish", "a{sv}", {"id": begun.id, "since_stop_usec": 0})[0]
    assert found["outcome"] == "never" and qemus(bed) == []


def test_source_disappears(bed, vm, peer):
    """The link's end gives the migration up, and everything goes."""
    with Peer(bed.a, "new2") as other:
        other.hello()
        other.prepare(**cookie(other, definition=definition({"mac": "52:54:00:12:34:4e", "addresses": ["10.0.0.78"]})))
        other.process.kill()
    assert wait_gone(bed, "new2")


def wait_gone(bed, name, limit=LIMIT):
    end = time.monotonic() + limit
    while (bed.a.runtime / name).exists() and time.monotonic() < end:
        select.select([], [], [], 0.05)
    return not (bed.a.runtime / name).exists()


def test_two_sources_at_once(bed, begun):
    with Peer(bed.a, "new1") as second:
        second.hello(host_id="evil.2", host_name="evil2")
        with pytest.raises(Refused, match="new1 is on host a already"):
            second.prepare(**cookie(second))
        with pytest.raises(Refused, match="Delta outside a migration"):
            second.call("Delta", "bay", True, b"")
        assert second.outcome()["outcome"] == "never"
        assert second.call("Abort", "s", second.id) == []
        assert len(qemus(bed)) == 1
    assert begun.call("Ping") == [] and len(qemus(bed)) == 1
    with Peer(bed.a, "new3") as third:
        third.hello()
        with pytest.raises(Refused, match="belongs to the VM new1"):
            third.prepare(**cookie(third))
    assert begun.outcome()["outcome"] == "never"


def test_a_running_guests_keeper(bed, vm):
    """All of it against the keeper of a guest that runs."""
    with Peer(bed.a, "web1") as peer:
        peer.hello()
        with pytest.raises(Refused, match="a VM named web1 is on host a already"):
            peer.prepare(**cookie(peer, uuid=vm.uuid, definition=definition(uuid=vm.uuid)))
        with pytest.raises(Refused, match="Delta outside a migration"):
            peer.call("Delta", "bay", True, batch(record("10.0.0.5", "10.0.0.100")))
        assert peer.call("Finish", "a{sv}", {"id": peer.id, "since_stop_usec": 0})[0]["outcome"] == "never"
        assert peer.outcome()["outcome"] == "never"
        assert peer.call("Abort", "s", peer.id) == []
    assert bed.a.status("web1")["state"] == "running"


# ---- bytes ----


@pytest.mark.parametrize("line, said", [
    (b"\n", "does not speak vmferry/1"),
    (b"GET / HTTP/1.1\r\n", "does not speak vmferry/1"),
    (b"vmferry/2 peer new1 {id} -\n", "does not speak vmferry/1"),
    (b"vmferry/1 peer\n", "malformed first line"),
    (b"vmferry/1 peer ../web1 {id} -\n", "malformed first line"),
    (b"vmferry/1 peer web1;id {id} -\n", "malformed first line"),
    (b"vmferry/1 peer " + b"n" * 49 + b" {id} -\n", "malformed first line"),
    (b"vmferry/1 peer new1 0123 -\n", "malformed first line"),
    (b"vmferry/1 peer new1 {ID} -\n", "malformed first line"),
    (b"vmferry/1 control new1 {id} -\n", "malformed first line"),
    (b"vmferry/1 peer new1 {id} - " + b"p" * 65 + b"\n", "malformed first line"),
    (b"vmferry/1 peer new1\0 {id} -\n", "malformed first line"),
    (b"x" * 5000, "too long"),
    (b"vmferry/1 peer new1", "ended before a whole line"),
    (b"", "ended before a whole line"),
], ids=numbered())  # fmt: skip
def test_first_line(bed, line, said):
    line = line.replace(b"{id}", b"a" * 32).replace(b"{ID}", b"A" * 32)
    with Peer(bed.a, "new1", line=b"", bus=False) as peer:
        try:
            peer.send(line)
            peer.process.stdin.close()
        except Closed:
            pass
        answer = peer.line()
        assert answer.startswith("vmferry/1 error ") and said in answer, answer
        assert peer.wait_closed()
    assert not (bed.a.runtime / "new1").exists()


def test_first_line_to_a_keeper(bed, vm):
    """The same without `receive` before it, and a name that is not this keeper's."""
    for line in (b"\0" * 2000, b"vmferry/1 peer other " + b"a" * 32 + b" -\n", b"HELO\n", b"vmferry/1 data web1 " + b"a" * 65 + b"\n"):
        with Peer(bed.a, "web1", line=line, bus=False, direct=True) as peer:
            answer = peer.line()
            assert answer.startswith("vmferry/1 error "), answer
            assert peer.wait_closed()


def header(kind=1, body=0, fields=0, order=b"l", version=1):
    return struct.pack("<cBBBIII", order, kind, 0, version, body, 1, fields)


@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\n" * 200,
    b"\0" + b"AUTH EXTERNAL 30\r\n" * 100,
    b"\0" + b"A" * 5000,
    rawpeer.AUTH + b"\xff" * 5000,
    rawpeer.AUTH + header(body=64 << 20),
    rawpeer.AUTH + header(body=(1 << 20) - 16 + 1),
    rawpeer.AUTH + header(fields=0xFFFFFFFF),
    rawpeer.AUTH + header(body=0xFFFFFFFF, fields=0xFFFFFFFF),
    rawpeer.AUTH + header(version=2),
    rawpeer.AUTH + header(kind=0),
    rawpeer.AUTH + header(kind=200, fields=16) + bytes(range(16)),
], ids=numbered())  # fmt: skip
def test_garbage_as_dbus(bed, vm, data):
    for name, direct in (("new1", False), ("web1", True)):
        with Peer(bed.a, name, line=f"vmferry/1 peer {name} {new_id()} -\n".encode(), bus=False, direct=direct) as peer:
            assert peer.line() == "vmferry/1 ok -"
            try:
                peer.send(data)
            except Closed:
                pass
            assert peer.wait_closed()


def test_truncated_messages(bed, peer):
    """A message that is cut off at every place where it could be."""
    whole = rawpeer.method("Outcome", 1, "s", new_id())
    for length in (1, 15, 16, 17, len(whole) // 2, len(whole) - 1):
        with Peer(bed.a, "new1") as other:
            other.send(whole[:length])


def test_messages_that_mean_nothing(bed, peer):
    """Well-formed D-Bus that nobody here waits for: no answer, no harm."""
    peer.send(rawpeer.message(rawpeer.RETURN, 900, "s", "x", reply=4711))
    peer.send(rawpeer.message(rawpeer.ERROR, 901, "s", "x", reply=4711, error="org.evil.Error"))
    for member in ("Log", "Receiving", "Disconnected"):
        for interface in (rawpeer.INTERFACE, "org.freedesktop.DBus.Local"):
            peer.send(rawpeer.message(rawpeer.SIGNAL, 902, path="/org/freedesktop/DBus/Local", interface=interface, member=member))
    assert peer.call("Ping") == []
    with Peer(bed.a, "new1") as other:
        other.send(rawpeer.method("Outcome", 5, "s", b"\xff\xfe not utf-8"))
    assert peer.call("Ping") == []


def test_silence(bed, vm):
    """Who connects and says nothing, or goes silent, is dropped after its time; who comes meanwhile is served."""
    first = f"vmferry/1 peer new1 {new_id()} -\n".encode()
    silent = [
        Peer(bed.a, "new1", line=b"", bus=False),
        Peer(bed.a, "new1", line=b"vmferry/1 pe", bus=False),
        Peer(bed.a, "web1", line=b"", bus=False, direct=True),
        Peer(bed.a, "new1", line=first, bus=False),
        Peer(bed.a, "new1", line=first + rawpeer.AUTH[:10], bus=False),
        Peer(bed.a, "new1", line=first + rawpeer.AUTH + header(body=1000), bus=False),
        Peer(bed.a, "new1", line=first + rawpeer.AUTH + header(order=b"B"), bus=False),
        Peer(bed.a, "new1", line=first + rawpeer.AUTH + header(fields=64) + b"\xff" * 64, bus=False),
        Peer(bed.a, "web1"),
    ]
    with Peer(bed.a, "web1") as peer:
        assert peer.hello()["host_name"] == "a"
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(silent)) as pool:
        for peer in silent:
            peer.limit = 30
        assert all(pool.map(lambda peer: peer.wait_closed(), silent))
    assert time.monotonic() - begin < 30
    for peer in silent:
        peer.close()


def test_hundred_connections(bed, vm):
    """More than a keeper takes: told so, and it goes on as before when they are gone."""
    peers = [Peer(bed.a, "web1", bus=False, direct=True) for _ in range(100)]
    answers = [peer.line() for peer in peers]
    taken = [answer for answer in answers if answer == "vmferry/1 ok -"]
    assert len(taken) == 16 and all("too many" in answer for answer in answers if answer not in taken), answers
    assert bed.a.vmferry_json("status", "web1")["state"] == "running"
    for peer in peers:
        peer.close()
    end = time.monotonic() + LIMIT
    while True:  # until the keeper has seen them go
        try:
            with Peer(bed.a, "web1") as peer:
                assert peer.hello()["host_name"] == "a"
                break
        except (Refused, Closed):
            assert time.monotonic() < end


def test_hundred_receives(bed, vm):
    """The same through `vmferry receive`, for a VM that is not here: one keeper serves what it can."""
    with conf_of(bed.a, "deadlines { connect = 60 link = 60 }\n"):  # none of them goes before the last one has come
        peers = [Peer(bed.a, "new1", bus=False) for _ in range(40)]
        answers = [peer.line() for peer in peers]
        assert sum(answer == "vmferry/1 ok -" for answer in answers) == 16, answers
        end = time.monotonic() + LIMIT
        while len(more := [line for line in bed.a.leftovers() if "--incoming" in line and "--parent" not in line]) > 1:
            assert time.monotonic() < end, more  # those that came second have found the first, and end
            stays.wait_for_exit(more)
        assert more
        for peer in peers:
            peer.close()


# ---- a target that lies ----


def fake(bed, tmp_path, **script):
    """A destination that plays the script of rawpeer.Target."""
    path = tmp_path / f"{new_id()}.json"
    path.write_text(json.dumps(script))
    return "exec:" + " ".join(bed.switch.exec(sys.executable, str(pathlib.Path(rawpeer.__file__)), str(path)))


def not_taken(bed, destination, said, hint="", *options, status=1, outcome="failed"):
    """Migrate there fails with these words and leaves the guest here; nothing that is shown or kept has been forged."""
    done = bed.a.vmferry("migrate", "web1", destination, *options, "--progress=none", check=False)
    assert done.returncode == status, done
    assert any(said in line for line in done.stderr.splitlines()) and hint in done.stderr, done.stderr
    for text in (done.stdout, done.stderr, json.dumps(bed.a.status("web1"), ensure_ascii=False)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]|\\u001b|\\n", text), text
    result = bed.a.status("web1")["last_result"]
    assert result["status"] == outcome and result["guest"] == ("running here" if outcome == "failed" else "unknown"), result
    return result


@pytest.mark.parametrize("script, said", [
    ({"line": "silence"}, "no answer from the target within the time limit"),
    ({"line": "close"}, "ended with status 0"),
    ({"line": "vmferry/1 error go away\x1b[2J\tforged\x07 hint\n"}, "go away?[2J"),
    ({"line": "vmferry/2 ok -\n"}, "another version of the protocol"),
    ({"line": "vmferry/1 ok x\n"}, "malformed answer"),
    ({"line": "\x1b[2J\n"}, 'something else than vmferry: "?[2J"'),
    ({"line": "x" * 3000}, "no answer line"),
    ({"hello": {"address": "evil\x1b[2J;id"}}, "field address has characters"),
    ({"hello": "silence"}, "Hello: no answer from the"),
    ({"hello": "close"}, "closed"),
    ({"hello": "garbage"}, "bytes that are no D-Bus message"),
    ({"hello": "huge"}, "message over 1 MiB"),
    ({"hello": "truncated"}, "closed"),
    ({"hello": "error"}, "no?[2J? way"),
    ({"hello": "wrong"}, "Hello's answer: malformed"),
    ({"hello": {"version": 0}}, "speaks version 0 of the protocol, this one version 1"),
    ({"hello": {"version": 3, "least": 2}}, "speaks version 3 of the protocol, this one version 1"),
    ({"hello": {"version": "1"}}, "Hello's answer: field version is of the wrong type"),
    ({"hello": {"host_id": None}}, "Hello's answer: field host_id is missing"),
    ({"hello": {"host_name": "x" * 300}}, "Hello's answer: field host_name is over its limit"),
    ({"hello": {"mandatory": ["teleport"]}}, "requires the feature 'teleport'"),
    ({"hello": {"mandatory": ["\x1b[2J\nevil"]}}, "field mandatory has characters"),
    ({"hello": {"host_name": "evil\x1b[2J\nevil: completed"}}, "field host_name has characters it cannot have"),
    ({"log": ["evil\nevil: x", "\x1b]0;x\x07"], "prepare": "error"}, "no?[2J? way"),
    ({"prepare": "silence"}, "Prepare: no answer from the"),
    ({"prepare": "close"}, "closed"),
    ({"prepare": "garbage"}, "bytes that are no D-Bus message"),
    ({"prepare": "huge"}, "message over 1 MiB"),
    ({"prepare": "truncated"}, "closed"),
    ({"prepare": "error"}, "no?[2J? way"),
    ({"prepare": "wrong"}, "Prepare's answer: malformed"),
    ({"prepare": {"mandatory": ["teleport"]}}, "requires the feature 'teleport'"),
    ({"prepare": {"port": 65536}}, "Prepare's answer: field port is over its limit"),
    ({"prepare": {"warnings": ["w"] * 33}}, "Prepare's answer: field warnings is over its limit"),
    ({"prepare": {"token": None}, "data": "0" * 32}, "does not know this migration"),
    ({"prepare": {"token": "x"}, "data": "0" * 32}, "does not know this migration"),
    ({"data": "1" * 32}, "does not know this migration"),
    ({"data": "\x1b[2J"}, "malformed answer"),
])  # fmt: skip
def test_target_lies(bed, tmp_path, script, said):
    result = not_taken(bed, fake(bed, tmp_path, **script), said)
    assert result["error"]["phase"] in ("Begin", "Prepare")


@pytest.mark.parametrize("hello", [
    {"address": "10.99.0.1", "port": 9, "token": "0" * 32},
    {"address": "10.0.0.5", "port": 7002, "token": "0" * 32},
    {"address": "evil;id", "port": 1, "token": "0" * 32},
    {"address": "unix:/run/x", "port": 1, "token": "0" * 32},
    {"address": "0.0.0.0", "port": 1, "token": "0" * 32},
    {"address": "255.255.255.255", "port": 1, "token": "0" * 32},
    {"address": "::1", "port": 1, "token": "0" * 32},
    {"address": "fe80::1", "port": 1},
    {"address": "10.99.0.254"},
    {"token": "short"},
    {"token": None},
])  # fmt: skip
def test_address_that_is_not_the_targets(bed, tmp_path, hello):
    """Only what answers with the token is connected to by QEMU; asked for tls, that is the error, else another way is taken."""
    script = {"hello": hello, "prepare": "error"} | ({} if "address" in hello else {"listen": FAR})
    result = not_taken(bed, fake(bed, tmp_path, **script), "data address", "--transport=ssh", "--transport=tls")
    assert result["error"]["phase"] in ("Begin", "Prepare")
    result = not_taken(bed, fake(bed, tmp_path, **script), "no?[2J? way")
    assert result["transport"] == "tunnel" and "data address" in result["transport_reason"]


@pytest.mark.parametrize("prepare, said", [
    ({"address": "10.99.0.1"}, "another address"),
    ({"address": "10.0.0.5"}, "another address"),
    ({"address": "10.99.0.254,to=99"}, "another address"),
    ({"address": "::"}, "another address"),
    ({"port": 0}, "names no port"),
    ({"port": None}, "names no port"),
    ({"port": 1}, "Connection refused"),
])  # fmt: skip
@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_other_data_port_than_was_proved(bed, tmp_path, prepare, said, transport):
    not_taken(bed, fake(bed, tmp_path, listen=FAR, prepare=prepare), said, "", f"--transport={transport}")


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_silent_data_port(bed, vm, tmp_path, transport):
    """The port takes QEMU's connections and says nothing. The guest loses 1.5 s at most."""
    result = not_taken(bed, fake(bed, tmp_path, listen=FAR), "silent", "--transport=ssh", f"--transport={transport}")
    assert result["transport"] == transport and result["error"]["phase"] == "Perform"


@pytest.mark.parametrize("path", ["/nonexistent", "relative", "", "/etc/passwd", "/run/x%y'\"$(id)", "/" * 107, None])
def test_odd_data_socket(bed, tmp_path, path):
    hint = "two vmferry hosts on one machine"
    not_taken(bed, fake(bed, tmp_path, prepare={"data_socket": path}), "data channel (unix)", hint, "--transport=unix")
    said = "data_socket has characters it cannot have"
    not_taken(bed, fake(bed, tmp_path, prepare={"data_socket": "/a\nb"}), said, "", "--transport=unix")


TAKES = {"prepare": {"token": "0" * 32}, "data": "0" * 32, "receiving": True}


def test_target_that_does_not_receive(bed, tmp_path):
    """The stream goes somewhere, but the target's QEMU does not say that it has it: the guest is not left stopped."""
    not_taken(bed, fake(bed, tmp_path, **TAKES | {"receiving": False}), "the target's QEMU does not receive", "--transport=tls")


@pytest.mark.parametrize("script, said", [
    ({}, "the target did not take the guest: a fake"),
    ({"finish": {"reason": "x\x1b[2J\nevil", "hint": "\x07y", "ct_first_refused": "\x1b"}}, "did not take the guest: x?[2J?evil"),
    ({"finish": {"reason": None}}, "did not take the guest: no reason given"),
    ({"finish": {"id": "1" * 32}}, "did not take the guest"),
    ({"finish": {"id": "1" * 32, "outcome": "running"}}, "did not take the guest"),
    ({"finish": {"outcome": "perhaps"}}, "did not take the guest"),
    ({"finish": {"outcome": "running\n"}}, "did not take the guest"),
    ({"finish": {"mandatory": ["teleport"]}}, "did not take the guest"),
    ({"finish": {"ct_applied": "many"}}, "did not take the guest"),
    ({"finish": "error"}, "did not take the guest"),
    ({"finish": "wrong"}, "did not take the guest"),
    ({"finish": "close"}, "did not take the guest"),
    ({"finish": "garbage"}, "did not take the guest"),
    ({"finish": "huge"}, "did not take the guest"),
    ({"finish": "truncated"}, "did not take the guest"),
    ({"finish": "silence"}, "did not take the guest"),
    ({"delta": "error"}, "did not take the guest"),
    ({"delta": "silence"}, "did not take the guest"),
])  # fmt: skip
def test_target_lies_after_the_commit(bed, tmp_path, script, said):
    """Only an answer is an answer; what is none makes the source ask again, and Never brings the guest back."""
    not_taken(bed, fake(bed, tmp_path, **TAKES | script), said)


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.new_keeper
@pytest.mark.gap(20000)
def test_killed_before_qemu_reads_cont(bed, vm, tmp_path):
    """QEMU throws away what a connection that ends has still in its queue: the next keeper must know that a cont is due."""
    destination = fake(bed, tmp_path, **TAKES, finish={"outcome": "perhaps"}, outcome={"outcome": "perhaps"})
    assert bed.a.vmferry("migrate", "web1", destination, "--progress=none", check=False).returncode == 3
    fault, pid = bed.a.runtime / "fault", bed.a.status("web1")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        select.select([], [], [], 2.5)  # the keeper asks for figures twice a second: QEMU is to have more to do than its cont
        fault.write_text("END:after:self\n")
        bed.a.vmferry("recover", "web1", "--assume=runs-nowhere", "--yes", check=False)
        wait_until(lambda: not fault.exists())
    finally:
        os.kill(pid, signal.SIGCONT)
    vm.probe.assert_alive(20)
    wait_until(lambda: bed.a.status("web1")["state"] == "running" and not (bed.a.runtime / "web1/move").exists())


@pytest.mark.gap(20000)
def test_target_that_never_answers(bed, vm, tmp_path):
    """In doubt: exit status 3, the guest waits; a person who knows better has the last word."""
    destination = fake(bed, tmp_path, **TAKES, finish={"outcome": "perhaps"}, outcome={"outcome": "perhaps"})
    done = bed.a.vmferry("migrate", "web1", destination, "--progress=none", check=False)
    assert done.returncode == 3 and "see recover" in done.stderr, done
    assert bed.a.status("web1")["state"] == "in-doubt"
    done = bed.a.vmferry("cancel", "web1", check=False)
    assert done.returncode == 1 and "too late" in done.stderr, done
    for words in (["start"], ["resume"], ["migrate", "web1", destination], ["kill"], ["pause"]):
        done = bed.a.vmferry(words[0], *(words[1:] or ["web1"]), check=False)
        assert done.returncode == 1, done
    assert bed.a.status("web1")["state"] == "in-doubt"
    with pytest.raises(OSError):
        bed.ask(vm.guest, "bootid", timeout=1)
    done = bed.a.vmferry("recover", "web1", "--assume=runs-nowhere", check=False)
    assert done.returncode == 1 and "--yes" in done.stderr and bed.a.status("web1")["state"] == "in-doubt", done
    bed.a.vmferry("recover", "web1", "--assume=runs-nowhere", "--yes")
    vm.probe.assert_alive(10)
    assert bed.a.status("web1")["last_result"]["guest"] == "running here"


@pytest.mark.gap(20000)
def test_paused_guest_comes_back_paused(bed, vm, tmp_path):
    bed.a.vmferry("pause", "web1")
    destination = fake(bed, tmp_path, **TAKES, finish="close")
    assert bed.a.vmferry("migrate", "web1", destination, "--progress=none", check=False).returncode == 1
    status = bed.a.status("web1")
    assert (status["state"], status["reason"]) == ("paused", "user") and status["last_result"]["guest"] == "paused", status
    bed.a.vmferry("resume", "web1")
    vm.probe.assert_alive(10)


def test_prepares_and_sends_nothing(bed, vm):
    """Pings keep a link alive, not a QEMU that nothing is sent to."""
    with conf_of(bed.a, "deadlines { prepare = 2 }\n"), Peer(bed.a, "new1") as peer:
        peer.hello()
        peer.prepare(**cookie(peer))
        (pid,) = [pid for pid, line in bed.a.processes().items() if "guest=new1" in line]
        gone = os.pidfd_open(pid)
        assert select.select([gone], [], [], LIMIT)[0], "QEMU is still there"
        os.close(gone)
        assert peer.outcome()["outcome"] == "never"
