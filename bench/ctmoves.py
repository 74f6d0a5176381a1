# SPDX-License-Identifier: GPL-2.0-or-later
"""Sections "moves", "bulk" and "stream" of bench/conntrack: a real guest, moved by vmferry between two hosts with strict firewalls."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

TREE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TREE / "tests/host"))

from netns import command  # noqa: E402
from rawqemu import RawQemu, migrate  # noqa: E402
from vmbus import Bus, qmp_option, start  # noqa: E402
from testbed import BUILD, Guest, Testbed, wait_until  # noqa: E402

BENCH = BUILD / "bench/ct-bench"
FERRY = Guest(5)
PACE = 20000000  # bytes a second


def tools():
    """What takes long the first time."""
    for tool in ("get-qemu10", "make-guest"):
        subprocess.run([TREE / "tools" / tool], check=True, stdout=subprocess.DEVNULL)


def prepare_churn(host):
    """A way in and out for the generator's packets, through the host's forward hook and past the guest, who knows nothing of them."""
    host.netns.ip("tuntap add dev churn mode tun", "link set churn up", "rule add iif churn lookup 100",
                  "route add default dev churn table 100")  # fmt: skip
    names = ("all/send_redirects", "churn/send_redirects", "all/rp_filter", "churn/rp_filter")
    host.netns.sysctl({"net/ipv4/ip_forward": 1} | {f"net/ipv4/conf/{name}": 0 for name in names})


@contextlib.contextmanager
def churning(host, rate):
    """New connections to the VM, of which half have ended by the time this begins."""
    if not rate:
        yield
        return
    words = host.netns.exec(str(BENCH), "churn", FERRY.ip4, *map(str, (rate, 0, rate, 2 * rate)))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        try:
            time.sleep(2.5)  # nothing else says that connections end as fast as they begin
            yield
        finally:
            child.terminate()


def run_moves(entries, rates, rounds, warm=1):
    """Rows of what the keepers say of their own, back and forth with each rate in turn."""
    rows = []
    with Testbed(sshd=False, ct_events=1) as bed:
        for host in bed.hosts:
            prepare_churn(host)
        bed.a.start("web1", FERRY)
        done = json.loads(command(*bed.a.netns.exec(str(BENCH), "fill", FERRY.ip4, "0", str(entries))))
        assert done["applied"] == entries, done
        here, there = bed.a, bed.b
        for number in range(1 - warm, rounds + 1):
            for rate in rates:
                with churning(here, rate):
                    result = here.migrate("web1", there, "--transport=tcp")
                table, steps = result["conntrack"], result["steps"]
                assert table["followed"] >= entries, table
                if number > 0:
                    rows.append({"rate": rate, "pause_ms": result["pause_ms"], "total_ms": result["total_ms"]}
                                | {k: table[k] for k in ("followed", "applied", "failed", "refused", "lost", "last_delta_entries", "barrier_ms")}
                                | {f"step_{k}": steps[k] for k in steps})
                here, there = there, here
    return rows


def count_invalid(host):
    """A counter of its own before the firewall, which drops them silently. Not of RSTs: the client answers so to what the guest
    still has to say to a stream that was closed after its move, and the entry of that may be gone."""
    family = "inet" if os.path.exists("/proc/sys/net/bridge") else "bridge"
    rules = f"table {family} count {{ chain c {{ type filter hook forward priority -1; ct state invalid tcp flags & rst == 0 counter; }}; }}"
    command(*host.netns.exec("nft", rules))
    return lambda: sum(
        rule["counter"]["packets"]
        for item in json.loads(command(*host.netns.exec("nft", "-j", "list", "table", family, "count")))["nftables"]
        for rule in item.get("rule", {}).get("expr", []) if "counter" in rule
    )  # fmt: skip


def gap_of(bed, move):
    """The longest time the bulk stream got nothing while it was moved, ms."""
    with bed.probe(f"bulk,{FERRY.ip4},pace={PACE}") as probe:
        probe.mark()
        row = move()
        (stream,) = probe.assert_alive(20)
    return row | {"gap_ms": stream["gap_ms"], "bytes": stream["bytes"]}


def run_bulk(rounds, warm=1):
    """Rows of vmferry through strict firewalls, and of raw QEMU where there are none, in turn."""
    rows = []
    with Testbed(sshd=False) as bed, Testbed(sshd=False, strict=False) as open_bed:
        invalid = {host: count_invalid(host) for host in bed.hosts}
        bed.a.start("web1", FERRY)
        raw = RawQemu(open_bed.a, FERRY, 128).wait_ready()
        here, there = bed.a, bed.b

        def move_vmferry():
            before = invalid[there]()
            result = here.migrate("web1", there, "--transport=tcp")
            return {"what": "vmferry, strict firewall", "pause_ms": result["pause_ms"], "invalid": lambda: invalid[there]() - before}

        def move_raw():
            nonlocal raw
            raw, row = migrate(raw, open_bed.b if raw.host is open_bed.a else open_bed.a)
            return {"what": "raw QEMU, no firewall", "pause_ms": row["pause_ms"], "invalid": lambda: 0}

        for number in range(1 - warm, rounds + 1):
            for one, move in ((bed, move_vmferry), (open_bed, move_raw)):
                row = gap_of(one, move)
                if number > 0:
                    rows.append(row | {"invalid": row["invalid"]()})
            here, there = there, here
    return rows


# ---- in QEMU's own stream ----


@contextlib.contextmanager
def with_nothing(_qemus, _buses):
    """Without the object: entries stay where they are."""
    yield


@contextlib.contextmanager
def with_helper(_qemus, buses):
    """vmferry-vmstate beside each QEMU."""
    for bus in buses:
        start(bus, FERRY)
    wait_until(lambda: buses[0].helpers()["vmferry-web1"]["followed"] >= count_entries(buses[0].host))
    yield
    for bus in buses:
        bus.tool("stop", "web1", check=False)


@contextlib.contextmanager
def with_fork(qemus, buses):
    """Proxmox's way: conntrack(8) started by Save and by Load."""
    children = []
    for qemu, bus in zip(qemus, buses):
        children.append(bus.host.popen(BUILD / "bench/fork-vmstate", bus.address, "fork-web1", FERRY.ip4, stdout=subprocess.PIPE))
        assert children[-1].stdout.readline() == b"ready\n"
        qemu.qmp("object-add", qom_type="dbus-vmstate", id="fork", addr=bus.address, id_list="fork-web1")
    try:
        yield
        qemus[1].qmp("object-del", id="fork")
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()


def count_entries(host):
    return len(host.conntrack("-s", FERRY.ip4))


WAYS = {"without": with_nothing, "vmferry-vmstate": with_helper, "conntrack -L in Save": with_fork}


def run_stream(entries, rounds, warm=1, listeners=None):
    """Rows of one guest moved back and forth by a script, each way in turn, with so many entries to carry; with @listeners also beside
    these, who listen to the same events."""
    rows, ways = [], dict(WAYS)

    @contextlib.contextmanager
    def with_listeners(qemus, buses):
        with listeners(*(host.netns for host in bed.hosts)), with_helper(qemus, buses):
            yield

    if listeners:
        ways["vmferry-vmstate, conntrackd listens"] = with_listeners
    with Testbed(sshd=False, ct_events=1) as bed, contextlib.ExitStack() as stack:
        buses = {host: stack.enter_context(contextlib.closing(Bus(host))) for host in bed.hosts}
        here, there = bed.a, bed.b
        qemu = RawQemu(here, FERRY, options=qmp_option(here)).wait_ready()
        for number in range(1 - warm, rounds + 1):
            for name, way in ways.items():
                for host in bed.hosts:
                    command(*host.netns.exec("conntrack", "-F"))
                command(*here.netns.exec(str(BENCH), "fill", FERRY.ip4, "0", str(entries)))
                target = RawQemu(there, FERRY, incoming=True, options=qmp_option(there))
                with way((qemu, target), (buses[here], buses[there])):
                    qemu, row = migrate(qemu, there, target=target)
                carried = count_entries(there)
                if number > 0:
                    rows.append({"what": name, "pause_ms": row["pause_ms"], "wall_ms": row["wall_ms"], "carried": carried})
                here, there = there, here
        qemu.close()
    return rows
