# SPDX-License-Identifier: GPL-2.0-or-later
"""src/conntrack/ against the kernel: what is followed on one firewall is applied on another (ctlab.py). Needs root."""
import contextlib
import os
import socket
import struct
import threading

from ctlab import *  # fixtures too


def test_flows_survive(lab, flows, tools):
    follower, applier = ferry(lab, tools, settle=1)
    late = [  # opened while it is followed
        Tcp(lab.client, lab.vm, VM, 73),
        Tcp(lab.vm, lab.client, CLIENT6, 75, socket.AF_INET6),
        Tcp(lab.client, lab.vm, PUBLIC, 8080, bind=7),
        Tcp(lab.vm, lab.client, CLIENT, 9000),
    ]
    other = Tcp(lab.client, lab.vm, OTHER, 74)
    try:
        last = follower.stop()
        applied = applier.line("applied")
        assert last["entries"] == applied["applied"] == len(flows) + len(late), (last, applied)
        assert applied["refused"] == applied["failed"] == applied["replaced"] == 0, applied
        for address in (VM, VM6):
            assert lab.fw2.connections(address) == lab.fw1.connections(address)
        assert not lab.fw2.connections(OTHER)
        applier.line("settled")
        lab.lead(2)
        assert {name: f.works() for name, f in flows.items()} == {name: True for name in flows}
        assert [f.works() for f in late] == [True] * len(late)
        other.b.settimeout(0.3)
        assert not other.works(), "fw2 lets through what it does not know: this test shows nothing"
        assert lab.invalid(lab.fw2) > 0
    finally:
        for f in [*late, other]:
            f.close()


def test_without_entries_all_die(lab, flows):
    lab.lead(2)
    for f in flows.values():
        for s in (getattr(f, x, None) for x in "abs"):
            if s:
                s.settimeout(0.1)
    assert not any(f.works() for f in flows.values())


BULK = {
    "ipv4": lambda lab: Tcp(lab.client, lab.vm, VM, 7),
    "ipv6": lambda lab: Tcp(lab.client, lab.vm, VM6, 7, socket.AF_INET6),
    "translated": lambda lab: Tcp(lab.client, lab.vm, PUBLIC, 8080, bind=7),
}


@pytest.mark.parametrize("kind", BULK)
def test_bulk_goes_on(lab, tools, kind):
    """At full speed with scaled windows: no packet is invalid, and the gap is not one of a retransmission, beside what the routes and a
    loaded machine take."""
    flow = BULK[kind](lab)
    bulk = Bulk(flow)
    try:
        until(lambda: bulk.received > 20 << 20)
        follower, applier = ferry(lab, tools, settle=1000)
        follower.stop()
        applier.line("applied")
        usual, bulk.gap, begin = bulk.gap, 0.0, time.monotonic()
        lab.lead(2)
        led = time.monotonic() - begin
        before = bulk.received
        until(lambda: bulk.received > before + (60 << 20))
        gap = bulk.gap
        applier.line("settled")
        before = bulk.received
        until(lambda: bulk.received > before + (20 << 20))  # and with strict window checks
        print(f"bulk: longest gap at the switch {gap * 1000:.0f} ms, before {usual * 1000:.0f} ms, routes {led * 1000:.0f} ms, invalid {lab.invalid(lab.fw2)}")
        assert gap < 0.2 + led + 2 * usual
        assert lab.invalid(lab.fw2) == 0
        (said,) = dump(lab.fw2, VM, VM6).values()
        assert said["tcp"].startswith("03 ") and int(said["tcp"].split()[2], 16) & 9 == 1 and said["tcp"].split()[1] != "00"
    finally:
        bulk.end()
        flow.close()


def test_ended_ones_end_there_too(lab, tools):
    with contextlib.closing(Udp(lab.client, lab.vm, VM, 53)), contextlib.closing(Tcp(lab.client, lab.vm, VM, 7)) as tcp:
        follower, applier = ferry(lab, tools)
        until(lambda: len(lab.fw2.connections(VM)) == 2)
        lab.fw1.exec("conntrack", "-D", "-p", "udp")
        until(lambda: len(lab.fw2.connections(VM)) == 1)
        # another connection with the same tuple
        port = tcp.a.getsockname()[1]
        tcp.a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        tcp.a.close()
        until(lambda: "CLOSE" in lab.fw2.connections(VM)[0])
        again = lab.client.socket(socket.AF_INET, socket.SOCK_STREAM)
        with again, lab.vm.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((VM, 7))
            listener.listen()
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind((CLIENT, port))
            again.connect((VM, 7))
            until(lambda: "ESTABLISHED" in lab.fw2.connections(VM)[0])
            follower.stop()
            assert applier.line("applied")["failed"] == 0
            assert lab.fw2.connections(VM) == lab.fw1.connections(VM)


def test_what_lies_there_is_replaced(lab, tools):
    with contextlib.closing(Tcp(lab.client, lab.vm, VM, 7)) as flow:
        port = flow.a.getsockname()[1]
        # the wrong way round, as a firewall in the middle of a stream would make it
        lab.fw2.exec("conntrack", "-I", "-p", "tcp", "-s", VM, "-d", CLIENT, "--sport", 7, "--dport", port, "--state",
                     "ESTABLISHED", "-t", 1000)
        follower, applier = ferry(lab, tools)
        follower.stop()
        applied = applier.line("applied")
        assert (applied["applied"], applied["replaced"], applied["failed"]) == (1, 1, 0)
        assert lab.fw2.connections(VM) == lab.fw1.connections(VM)
        lab.lead(2)
        assert flow.works()


def test_only_the_vms_own(lab, flows, tools):
    read, write = os.pipe()
    follower = tools(Follower(lab.fw1, VM, out=write))
    applier = tools(Applier(lab.fw2, OTHER, stdin=read))
    os.close(read)
    os.close(write)
    n = follower.stop()["entries"]
    applied = applier.line("applied")
    assert applied["refused"] == n > 0 and applied["applied"] == 0
    assert applied["first_refused"].startswith("not of this VM's addresses: ")
    assert lab.fw2.connections(VM) == []


def test_anothers_entry_stays(lab, tools):
    with contextlib.closing(Tcp(lab.client, lab.vm, PUBLIC, 8080, bind=7)) as flow:
        port = flow.a.getsockname()[1]
        lab.fw2.exec("conntrack", "-I", "-p", "tcp", "-s", CLIENT, "-d", PUBLIC, "--sport", port, "--dport", 8080, "-r", OTHER,
                     "-q", CLIENT, "--reply-port-src", 7, "--reply-port-dst", port, "--state", "ESTABLISHED", "-t", 1000)
        before = lab.fw2.connections(OTHER)
        follower, applier = ferry(lab, tools)
        follower.stop()
        applied = applier.line("applied")
        assert (applied["applied"], applied["refused"], applied["replaced"]) == (0, 1, 0)
        assert applied["first_refused"].startswith("the entry of another is in its place: tcp")
        assert lab.fw2.connections(OTHER) == before and len(before) == 1


def test_rollback_leaves_nothing(lab, flows, tools):
    follower, applier = ferry(lab, tools, "--undo-if-cut")
    until(lambda: len(lab.fw2.connections(VM)) + len(lab.fw2.connections(VM6)) == len(flows))
    follower.proc.kill()
    n = applier.line("applied")["applied"]
    assert applier.line("rolled-back")["deleted"] == n == len(flows)
    assert b"without the final mark" in applier.proc.stderr.read()
    assert applier.proc.wait(LIMIT) == 1
    assert lab.fw2.connections(VM) == lab.fw2.connections(VM6) == []


def test_timeouts_are_true_after_settling(lab, flows, tools):
    follower, applier = ferry(lab, tools, settle=700)
    follower.stop()
    applier.line("applied")

    def timeouts(protocol):
        lines = lab.fw2.exec("conntrack", "-L", "-p", protocol).splitlines()
        return [int(line.split()[2]) for line in lines]
    held = timeouts("udp") + timeouts("icmp")
    assert min(held) >= 590
    applier.line("settled")
    assert applier.proc.wait(LIMIT) == 0
    assert max(timeouts("udp") + timeouts("icmp")) <= 120
    assert max(timeouts("tcp")) > 400000


def test_flush(lab, flows):
    with contextlib.closing(Tcp(lab.client, lab.vm, OTHER, 74)):
        assert len(lab.fw1.connections(VM)) > 4
        lab.fw1.exec(TOOL, "flush", "-a", VM, "-a", VM6, "--spare", VM6)
        assert lab.fw1.connections(VM) == []
        assert len(lab.fw1.connections(VM6)) == 3
        assert len(lab.fw1.connections(OTHER)) == 1
        lab.fw1.exec(TOOL, "flush", "-a", VM6, "--spare", CLIENT6)
        assert len(lab.fw1.connections(VM6)) == 3


def test_lost_events_are_made_up_for(lab, tools):
    """More events than the queue holds while the follower stands still: it dumps again and finds what ended."""
    total = 40000
    sink = tools(Applier(lab.fw1, VM))
    sink.proc.stdin.write(batch([put(n) for n in range(1000)]))
    sink.proc.stdin.flush()
    until(lambda: int(lab.fw1.exec("conntrack", "-C")) == 1000)
    follower = tools(Follower(lab.fw1, VM))
    known = {}
    reader = threading.Thread(target=read_deltas, args=(follower.proc.stdout, known), daemon=True)
    reader.start()
    follower.proc.send_signal(signal.SIGSTOP)
    for first in range(1000, total, 13000):
        sink.proc.stdin.write(batch([put(n) for n in range(first, min(first + 13000, total))]))
    sink.proc.stdin.write(batch([delete(n) for n in range(0, total, 2)]))
    sink.proc.stdin.close()
    assert sink.line("applied")["applied"] == total // 2
    follower.proc.send_signal(signal.SIGCONT)
    assert said_by(follower.proc)["event"] == "resynced"
    last = follower.stop()
    reader.join()
    assert last["overruns"] >= 1
    assert last["entries"] == total // 2
    assert set(known) == {tuple_of(n) for n in range(1, total, 2)}


def test_what_no_event_tells(lab, tools):
    """Entries older than the first listener end without an event where nf_conntrack_events is 2: dump again."""
    lab.fw1.exec("sysctl", "-qw", "net.netfilter.nf_conntrack_events=0")
    sink = tools(Applier(lab.fw1, VM))
    sink.proc.stdin.write(batch([put(n) for n in range(10)]))
    sink.proc.stdin.flush()
    until(lambda: int(lab.fw1.exec("conntrack", "-C")) == 10)
    follower = tools(Follower(lab.fw1, VM))
    sink.proc.stdin.write(batch([delete(n) for n in range(4)]))
    sink.proc.stdin.close()
    sink.line("applied")
    follower.proc.send_signal(signal.SIGUSR2)
    assert said_by(follower.proc)["event"] == "resynced"
    known = {}
    last = follower.stop()
    read_deltas(follower.proc.stdout, known)
    assert last["entries"] == 6 and set(known) == {tuple_of(n) for n in range(4, 10)}


def test_hostile_batches_change_nothing(lab, tools):
    good = batch([put(1), put(2)])
    for bad in (batch([put(1), put(2)])[:-1] + b"\xff", batch([put(1), b"\xe0\x06"]), batch([put(1), put(2)[:-1]])):
        sink = tools(Applier(lab.fw1, "--settle", 1, VM))
        sink.proc.stdin.write(bad)
        sink.proc.stdin.close()
        assert sink.line("applied")["applied"] == 0
        assert b"Connection records: " in sink.proc.stderr.read()
        assert sink.proc.wait(LIMIT) == 1
    sink = tools(Applier(lab.fw1, VM))
    sink.proc.stdin.write(batch([put(1), put(2, state=11), put(1), delete(1), put(1)]) + good)
    sink.proc.stdin.close()
    applied = sink.line("applied")
    assert (applied["received"], applied["applied"], applied["refused"], applied["failed"]) == (7, 2, 1, 0)
