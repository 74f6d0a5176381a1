# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong while connections are followed and applied (ctlab.py): lost events, interrupted dumps, a peer that lies, ends that
die, a way back, a flood. In the end the other firewall is right, or it is said what is not. Needs root.
"""
from ctlab import *  # fixtures too

SHIM = BUILD / "tests/host/libct-shim.so"


def close_all(flows):
    for f in flows:
        f.close()


def assert_carried(lab, *flows, back=False):
    here, there = (lab.fw2, lab.fw1) if back else (lab.fw1, lab.fw2)
    assert dump(there, VM, VM6) == dump(here, VM, VM6)
    lab.lead(1 if back else 2)
    assert [f.works() for f in flows] == [True] * len(flows)


def test_interrupted_dumps(lab, tools):
    """A dump that a change ran through is done again; what it lacked has not ended. After five a dump is taken as it is, and
    the next one finds the rest."""
    flows = [Tcp(lab.client, lab.vm, VM, 80 + i) for i in range(9)]
    try:
        for spoilt in (2, 6):
            more = {"env": os.environ | {"LD_PRELOAD": str(SHIM), "CT_SHIM": f"intr:{spoilt}",
                                         "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"}}
            lab.fw2.exec("conntrack", "-F")
            follower, applier = ferry(lab, tools, settle=1, **more)
            if spoilt > 5:
                until(lambda: len(lab.fw2.connections(VM)) >= len(flows) // 2)
                follower.proc.send_signal(signal.SIGUSR2)
                until(lambda: len(lab.fw2.connections(VM)) == len(flows))
            last = follower.stop()
            assert (last["interrupted"], last["entries"]) == (spoilt, len(flows)), last
            assert applier.line("applied")["applied"] == len(flows)
            applier.line("settled")
        assert_carried(lab, *flows)
    finally:
        close_all(flows)


def test_storm_of_events(lab, tools):
    """Real connections end, change and begin while the queue overflows; the overrun is counted, and the other side is right."""
    flows = [Tcp(lab.client, lab.vm, VM, 80 + i) for i in range(6)]
    try:
        noise = tools(Applier(lab.fw1, "--settle", 1, VM))
        follower, applier = ferry(lab, tools, settle=1)
        until(lambda: len(lab.fw2.connections(VM)) == len(flows))
        follower.proc.send_signal(signal.SIGSTOP)
        flows.pop(0).close()
        noise.proc.stdin.write(batch([put(n) for n in range(30000)]) + batch([delete(n) for n in range(30000)]))
        noise.proc.stdin.write(end())
        noise.proc.stdin.close()
        assert noise.line("applied")["applied"] == 0
        flows.append(HalfClosed(lab.client, lab.vm, VM, 91))
        flows.append(Tcp(lab.client, lab.vm, VM, 92))
        gone = flows.pop(0).a.getsockname()[1]
        lab.fw1.exec("conntrack", "-D", "-p", "tcp", "--sport", gone)
        follower.proc.send_signal(signal.SIGCONT)
        assert said_by(follower.proc)["event"] == "resynced"
        last = follower.stop()
        assert last["overruns"] >= 1
        applied = applier.line("applied")
        assert applied["applied"] == last["entries"] and applied["failed"] == 0
        applier.line("settled")
        assert not any(f"sport={gone} " in line for line in lab.fw2.connections(VM))
        assert_carried(lab, *flows)
    finally:
        close_all(flows)


def test_without_events(lab, tools):
    """nf_conntrack_events = 2, and connections older than the first listener: the follower sees to it with dumps of its own."""
    lab.fw1.exec("sysctl", "-qw", "net.netfilter.nf_conntrack_events=0")
    flows = [Tcp(lab.client, lab.vm, VM, 80 + i) for i in range(4)]
    try:
        lab.fw1.exec("sysctl", "-qw", "net.netfilter.nf_conntrack_events=2")
        follower, applier = ferry(lab, tools, addresses=(VM, VM6), settle=1)
        until(lambda: len(lab.fw2.connections(VM)) == 4)
        flows.append(Tcp(lab.client, lab.vm, VM, 91))
        gone = flows.pop(0).a.getsockname()[1]
        lab.fw1.exec("conntrack", "-D", "-p", "tcp", "--sport", gone)
        flows[0].a.shutdown(socket.SHUT_WR)
        assert flows[0].b.recv(1) == b""
        until(lambda: "CLOSE_WAIT" in " ".join(lab.fw2.connections(VM)) and len(lab.fw2.connections(VM)) == 4)
        follower.stop()
        assert applier.line("applied")["applied"] == 4
        applier.line("settled")
        assert not any(f"sport={gone} " in line for line in lab.fw2.connections(VM))
        assert_carried(lab, *flows[1:])
    finally:
        close_all(flows)


def test_sink_is_killed_half_way(lab, flows, tools):
    """The follower says that nobody reads; both run again, and what lies there is taken over."""
    follower, applier = ferry(lab, tools)
    until(lambda: len(lab.fw2.connections(VM)) > 4)
    applier.proc.kill()
    applier.proc.wait()
    late = [Tcp(lab.client, lab.vm, VM, 90 + i) for i in range(3)]
    try:
        assert follower.proc.wait(LIMIT) == 1
        assert b"who reads the entries has gone" in follower.proc.stderr.read()
        follower, applier = ferry(lab, tools, settle=1)
        last = follower.stop()
        applied = applier.line("applied")
        assert applied["applied"] == last["entries"] == len(flows) + 3
        assert applied["replaced"] >= len(flows) - 1 and applied["refused"] == applied["failed"] == 0, applied
        applier.line("settled")
        assert_carried(lab, *flows.values(), *late)
    finally:
        close_all(late)


@pytest.mark.parametrize("undo", (False, True), ids=("kept", "undone"))
def test_truncated_stream(lab, tools, undo):
    """Cut in a batch, in a header or between two: whole batches count, the status says that it was cut, nothing is left liberal."""
    whole = batch([put(n) for n in range(3)])
    for cut in (whole[:-1], whole[:7], b""):
        sink = tools(Applier(lab.fw1, "--settle", 1, *["--undo-if-cut"] * undo, VM))
        sink.proc.stdin.write(batch([put(n) for n in range(10, 15)]) + cut)
        sink.proc.stdin.close()
        assert sink.line("applied")["applied"] == 5
        assert sink.line("rolled-back" if undo else "settled")
        assert sink.proc.wait(LIMIT) == 1
        left = dump(lab.fw1, VM)
        assert len(left) == (0 if undo else 5)
        assert not any(int(said["tcp"].split()[2], 16) & 8 for said in left.values())
        lab.fw1.exec("conntrack", "-F")


def test_way_back_with_stale_entries(lab, flows, tools):
    """fw1 still has what it had when the VM left; the VM comes back with what became of it, other connections under the same tuples too."""
    renewed, changing = Tcp(lab.client, lab.vm, VM, 90), Tcp(lab.client, lab.vm, VM, 91)
    made = [*flows.values(), renewed, changing]
    try:
        follower, applier = ferry(lab, tools, settle=1)
        follower.stop()
        assert applier.line("applied")["applied"] == len(made)
        applier.line("settled")
        lab.lead(2)
        assert all(f.works() for f in made)
        renewed.again(lab.vm)
        changing.a.shutdown(socket.SHUT_WR)
        assert changing.b.recv(1) == b""
        made.append(Tcp(lab.client, lab.vm, VM, 92))
        assert len(lab.fw1.connections(VM)) + len(lab.fw1.connections(VM6)) == len(flows) + 2
        follower, applier = ferry(lab, tools, settle=1, back=True)
        last = follower.stop()
        applied = applier.line("applied")
        assert applied["applied"] == last["entries"] and applied["refused"] == applied["failed"] == 0, applied
        assert applied["replaced"] >= len(flows), applied
        applier.line("settled")
        assert_carried(lab, *[f for f in made if f is not changing], back=True)
        changing.b.sendall(b"hello")
        assert changing.a.recv(5) == b"hello"
    finally:
        close_all(made)


def test_flood_of_syns(lab, tools):
    """The client's SYNs, with the tuples of its connections, arrive at both firewalls all the time: before, at and after the switch."""
    lab.client.ip("rule", "add", "fwmark", 2, "lookup", 200)
    lab.client.ip("route", "add", "10.77.2.0/24", "via", "10.77.1.2", "table", 200)
    made = [Tcp(lab.client, lab.vm, VM, 80 + i % 4) for i in range(40)]
    raw = lab.client.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.connect((VM, 0))
    pairs = [(f.a.getsockname()[1], f.a.getpeername()[1]) for f in made]
    stop, count = threading.Event(), [0]

    def flood():
        while not stop.is_set():
            for mark in (2, 0):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                for sport, dport in pairs:
                    raw.send(syn(sport, dport))
                    count[0] += 1
            select.select([], [], [], 0.001)
    thread = threading.Thread(target=flood)
    thread.start()
    try:
        until(lambda: len(lab.fw2.connections(VM)) == len(made))
        assert "SYN_SENT" in lab.fw2.connections(VM)[0]
        follower, applier = ferry(lab, tools, settle=1)
        more = [Tcp(lab.client, lab.vm, VM, 90) for _ in range(5)]
        made += more
        until(lambda: count[0] > 2000)
        last = follower.stop()
        applied = applier.line("applied")
        assert applied["applied"] == last["entries"] and applied["refused"] == applied["failed"] == 0, applied
        assert applied["replaced"] >= 40
        before = count[0]
        applier.line("settled")
        lab.lead(2)
        until(lambda: count[0] > before + 1000)
        assert [f.works() for f in made] == [True] * len(made)
    finally:
        stop.set()
        thread.join()
        raw.close()
        close_all(made)


def syn(sport, dport):
    head = struct.pack("!HHIIBBHHH", sport, dport, 0x12345678, 0, 5 << 4, 2, 1000, 0, 0)
    pseudo = ipaddress.ip_address(CLIENT).packed + ipaddress.ip_address(VM).packed + struct.pack("!HH", 6, 20)
    total = sum(struct.unpack("!16H", pseudo + head))
    total = (total & 0xffff) + (total >> 16)
    total = (total & 0xffff) + (total >> 16)
    return head[:16] + struct.pack("!H", ~total & 0xffff) + head[18:]


# ---- a peer that lies ----

def address(text):
    return ipaddress.ip_address(text).packed


def attribute(kind, value):
    return bytes([kind, len(value)]) + value


def record(src, dst, ports=(1000, 80), reply=None, protocol=6, op=0, status=0x0e, timeout=1000, tcp=(3, 0x77, 0x33, 0x33), more=b"",
           expect=False):
    """A record by docs/wire.md; @reply: (source, destination, source port, destination port)."""
    v6 = ":" in src
    kind = op | 4 * v6 | 8 * bool(reply) | 16 * bool(more) | 32 * expect
    said = bytes([kind, protocol]) + address(src) + address(dst) + struct.pack("!HH", *ports)
    if reply:
        said += address(reply[0]) + address(reply[1]) + struct.pack("!HH", *reply[2:])
    if op != 2:
        said += struct.pack("!HI", status, timeout)
        if protocol == 6 and not expect:
            said += bytes(tcp)
    return said + (struct.pack("!H", len(more)) + more if more else b"")


FAR = "192.0.2.1"
ANY = bytes(10) + b"\xff\xff"  # mask of an expectation's tuple: only the destination's port is given
FULL = b"\xff" * 8 + b"\x00\x00\xff\xff"


def master(src, dst, ports):
    return attribute(0x05, b"\x06" + address(src) + address(dst) + struct.pack("!HH", *ports))


def expectation(src, dst, of, mask=FULL, nat=b"\x00"):
    more = attribute(0x04, b"ftp") + master(*of) + attribute(0x8a, mask + bytes(8) + nat)
    return record(src, dst, (0, 5000), status=0, timeout=300, more=more, expect=True)


OWN = (VM, FAR, (2000, 21))  # a connection with the ftp helper that comes along
LIES = {  # records, why they are refused
    "of others": ([record(OTHER, FAR)], "not-ours"),
    "of others, IPv6": ([record("fd77:2::6", "fd00::1")], "not-ours"),
    "to the VM, answered by another": ([record(FAR, VM, reply=(OTHER, FAR, 80, 1000), status=0x2e)], "not-ours"),
    "of another, behind the VM's address": ([record(OTHER, FAR, reply=(FAR, VM, 80, 1000), status=0x1e)], "not-ours"),
    "state": ([record(VM, FAR, tcp=(0, 0, 0, 0)), record(VM, FAR, tcp=(10, 0, 0, 0)), record(VM, FAR, tcp=(255, 0, 0, 0))], "malformed"),
    "window scale": ([record(VM, FAR, tcp=(3, 0xf0, 1, 1)), record(VM, FAR, tcp=(3, 0x0f, 1, 1))], "malformed"),
    "icmp": ([record(VM, FAR, (1, 0x0000 | type << 8), protocol=1) for type in (3, 5, 11, 255)], "malformed"),
    "icmpv6 in ipv4": ([record(VM, FAR, (1, 128 << 8), protocol=58)], "malformed"),
    "icmp in ipv6": ([record(VM6, "fd00::1", (1, 8 << 8), protocol=1)], "malformed"),
    "sctp": ([record(VM, FAR, protocol=132, more=attribute(0x88, b"\xff" + bytes(8))),
              record(VM, FAR, more=attribute(0x88, b"\x03" + bytes(8)))], "malformed"),
    "dccp": ([record(VM, FAR, protocol=33, more=attribute(0x89, b"\xff" + bytes(9)))], "malformed"),
    "zone": ([record(VM, FAR, more=attribute(0x82, b"\x00\x00\x00")), record(VM, FAR, more=attribute(0x82, b"\x00\x05\x03"))], "malformed"),
    "unknown and mandatory": ([record(VM, FAR, more=attribute(0xfe, b"x"))], "malformed"),
    "expected from and to others": ([expectation(FAR, OTHER, OWN)], "not-ours"),
    "expected to anywhere": ([expectation(FAR, VM, OWN, mask=ANY)], "not-ours"),
    "expected and sent to another": ([expectation(FAR, VM, OWN, nat=b"\x01" + address(OTHER) + bytes(4) + struct.pack("!HH", 5000, 0))], "not-ours"),
}


def test_lies(lab, tools):
    """What is refused is counted with its reason; what was there stays, and what is right in the same batch is taken."""
    good = [record(*OWN, more=attribute(0x04, b"ftp")), record(FAR, VM, (3000, 22))]
    for lie, (records_, reason) in LIES.items():
        lab.fw1.exec("conntrack", "-F")
        lab.fw1.exec("conntrack", "-I", "-p", "tcp", "-s", OTHER, "-d", FAR, "--sport", 7, "--dport", 80, "--state", "ESTABLISHED",
                     "-t", 1000)
        before = lab.fw1.exec("conntrack", "-L", "-o", "id")
        sink = tools(Applier(lab.fw1, "--settle", 1, VM, VM6))
        sink.proc.stdin.write(batch([*good, *records_]) + end())
        sink.proc.stdin.close()
        applied = sink.line("applied")
        assert (applied["applied"], applied["refused"], applied["failed"]) == (2, len(records_), 0), (lie, applied)
        assert applied["reasons"] == {reason: len(records_)} and applied["first_refused"], (lie, applied)
        now = lab.fw1.exec("conntrack", "-L", "-o", "id")
        assert re.search(r"id=\d+", before)[0] in now and len(now.splitlines()) == 3, (lie, now)
        assert lab.fw1.exec("conntrack", "-L", "expect") == "", lie


def test_anothers_master(lab, tools):
    """A child or an expectation of a connection that is not the VM's never comes to belong to it."""
    lab.fw1.exec("nft", "-f", "-", stdin='table inet fw { ct helper ftp { type "ftp" protocol tcp; }; '
                 'chain helpers { type filter hook prerouting priority -150; tcp dport 21 ct helper set "ftp"; }; }')
    with contextlib.closing(Tcp(lab.client, lab.vm, OTHER, 21)) as flow:
        of = (CLIENT, OTHER, (flow.a.getsockname()[1], 21))
        sink = tools(Applier(lab.fw1, "--settle", 1, VM))
        sink.proc.stdin.write(batch([record(FAR, VM, more=master(*of)), expectation(FAR, VM, of)]) + end())
        sink.proc.stdin.close()
        applied = sink.line("applied")
        assert (applied["applied"], applied["reasons"]) == (1, {"without-master": 2}), applied
        assert lab.fw1.exec("conntrack", "-L", "expect") == ""
        assert all(said["status"] & 1 == 0 for said in dump(lab.fw1, VM).values())
        lab.fw1.exec("conntrack", "-D", "-p", "tcp", "-d", OTHER)  # children go with their master
        assert len(lab.fw1.connections(VM)) == 1


def test_deletes_only_its_own(lab, tools):
    lab.fw1.exec("conntrack", "-I", "-p", "tcp", "-s", VM, "-d", FAR, "--sport", 7, "--dport", 80, "--state", "ESTABLISHED", "-t", 1000)
    sink = tools(Applier(lab.fw1, "--settle", 1, "--max-entries", 3, VM))
    sink.proc.stdin.write(batch([record(VM, FAR, (7, 80), op=2), *(put(n) for n in range(5)), delete(0), put(5)]) + end())
    sink.proc.stdin.close()
    applied = sink.line("applied")
    assert (applied["applied"], applied["reasons"]) == (3, {"limit": 2}), applied
    assert len(lab.fw1.connections(VM)) == 4


@pytest.mark.long
def test_full_table(lab, tools):
    """nf_conntrack_max is one for all namespaces and others use it: this namespace is filled up to it, with entries that the kernel
    does not drop early. What does not fit is counted; when there is room again, another run brings it."""
    limit = int(lab.fw2.exec("sysctl", "-n", "net.netfilter.nf_conntrack_max"))
    if limit > 300000:
        pytest.skip("nf_conntrack_max is too large to be filled here")
    filler = tools(Applier(lab.fw2, "--settle", 1, "--max-entries", 1000000, OTHER))
    other, known = address(OTHER), batch([])
    for first in range(0, limit + 1, 65536):
        count = min(65536, limit + 1 - first)
        filler.proc.stdin.write(batch([
            b"\x00\x06" + other + struct.pack("!IHHHIBBH", 0xc0000201 + (n >> 15), 1024 + (n & 0x7fff), 80, 0x0e, 432000, 3, 0x77, 0x3333)
            for n in range(first, first + count)]))
    filler.proc.stdin.flush()
    until(lambda: int(lab.fw2.exec("conntrack", "-C")) >= limit, 120)
    flows = [Tcp(lab.client, lab.vm, VM, 80 + i) for i in range(3)]
    try:
        follower, applier = ferry(lab, tools, settle=1)
        follower.stop()
        applied = applier.line("applied")
        assert (applied["applied"], applied["failed"], applied["reasons"]) == (0, 3, {"table-full": 3}), applied
        assert applied["first_refused"].startswith("the table is full: tcp")
        lab.fw2.exec("conntrack", "-D", "-s", "192.0.2.1", check=False)
        filler.proc.stdin.write(batch([b"\x02\x06" + other + struct.pack("!IHH", 0xc0000201, 1024 + n, 80) for n in range(1000)]) + end())
        filler.proc.stdin.close()
        filler.line("applied")
        follower, applier = ferry(lab, tools, settle=1)
        follower.stop()
        assert applier.line("applied")["applied"] == 3
        applier.line("settled")
        assert_carried(lab, *flows)
    finally:
        close_all(flows)


def test_dccp_from_a_kernel_that_tracks_it(lab, tools):
    """This one does not: between two addresses it knows one connection of the protocol, whatever the ports. It lets all of them pass
    (test_protocols_without_sockets)."""
    state = attribute(0x89, bytes([3, 0]) + struct.pack("!Q", 77))
    sink = tools(Applier(lab.fw1, "--settle", 1, VM))
    sink.proc.stdin.write(batch([record(VM, FAR, (1000, 5001), protocol=33, more=state),
                                 record(VM, FAR, (1001, 5001), protocol=33, more=state),
                                 record(VM, "192.0.2.2", (1002, 5001), protocol=33, more=state)]) + end())
    sink.proc.stdin.close()
    applied = sink.line("applied")
    assert (applied["applied"], applied["refused"], applied["failed"]) == (3, 0, 0), applied
    assert [re.findall(r"dst=(\S+) sport=(\d+) ", line)[0] for line in lab.fw1.connections(VM)] == [(FAR, "0"), ("192.0.2.2", "0")]
