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
