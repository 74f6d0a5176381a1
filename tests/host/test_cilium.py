# SPDX-License-Identifier: GPL-2.0-or-later
"""Cilium's table as source and sink of vmferry-conntrack, with agents that speak the documented API. No kernel is needed."""
import json
import os
import subprocess

import pytest

import ciliumd
from ciliumd import IN, key, lifetime, value
from test_conntrack import LIMIT, TOOL, until

VM, PEER = "10.0.0.5", "192.0.2.1"


@pytest.fixture
def pair(tmp_path):
    with ciliumd.agents(tmp_path, "one", "two") as made:
        yield made


def tool(*words, stdin=b"", status=0):
    done = subprocess.run([TOOL, *words], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LIMIT)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr.decode()


def said(text, event):
    return [o for o in map(json.loads, filter(lambda line: line.startswith("{"), text.splitlines())) if o["event"] == event][-1]


class Ferry:
    """follow at one agent, apply at another."""

    def __init__(self, source, target, *follow, address=(VM,)):
        words = [f"--address={a}" for a in address]
        read, write = os.pipe()
        self.apply = subprocess.Popen([TOOL, "apply", "--json", f"--cilium={target.path}", "--settle=1", *words], stdin=read,
                                      stderr=subprocess.PIPE)
        self.follow = subprocess.Popen([TOOL, "follow", "--json", f"--cilium={source.path}", "--resync=50", *words, *follow],
                                       stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE)
        os.close(read)
        os.close(write)

    def switch(self, status=0):
        """Return: what both said."""
        try:
            out = self.follow.communicate(timeout=LIMIT)[1].decode()
        except ValueError:  # stdin is closed
            out = self.follow.stderr.read().decode()
        applied = self.apply.communicate(timeout=LIMIT)[1].decode()
        assert self.follow.returncode == status, out
        return out, applied

    def close(self):
        for process in (self.follow, self.apply):
            process.kill()
            process.wait()
            for f in (process.stdin, process.stderr):
                if f:
                    f.close()


@pytest.fixture
def ferry():
    made = []

    def make(*words, **more):
        made.append(Ferry(*words, **more))
        return made[-1]
    yield make
    for one in made:
        one.close()


def same(one, two, slack=10):
    """Tables alike, but for counters and what runs on."""
    a, b = one.now(), two.now()
    return a.keys() == b.keys() and all(
        a[k][:16] == b[k][:16] and a[k][36:46] == b[k][36:46] and abs(lifetime(a[k]) - lifetime(b[k])) <= slack for k in a)


def test_bytes(pair):
    """Each field of an entry, there and back; the times of the last reports are not another host's."""
    one, two = pair
    entry = value(lifetime=1234, flags=0x0413, backend=0x1122334455667788, rev_nat=0x0102, identity=0x01020304, packets=5 << 40,
                  count=6 << 40, tx=0x1b, rx=0x12, reports=(7, 8), reserved=1 << 63)
    names = [key(VM, PEER, 40000, 443), key(VM, PEER, 40000, 443, flags=IN), key(PEER, VM, 9, 0, 1), key(VM, PEER, 0, 8, 1),
             key(VM, PEER, 5, 53, 17), key(VM, PEER, 5, 6, 132)]
    for name in names:
        one.put(name, entry)
    stream = tool("dump", f"--cilium={one.path}", "-a", VM)[0]
    out = tool("apply", "--json", f"--cilium={two.path}", "--settle=1", "-a", VM, stdin=stream)[1]
    assert said(out, "applied")["applied"] == len(names), out
    got = two.now()
    assert got.keys() == set(names)
    for entry_got in got.values():
        assert abs(lifetime(entry_got) - 1234) <= 10
        assert ciliumd.with_lifetime(entry_got, 1234) == entry[:-8] + bytes(8)
    shown = [json.loads(line) for line in tool("show", "--json", stdin=stream)[0].splitlines()]
    assert {s["table"] for s in shown} == {"cilium"} and sorted(s["direction"] for s in shown).count("in") == 1


def test_follow(pair, ferry):
    """What opens, changes and ends while it is followed; an end is a second that is left."""
    one, two = pair
    first, later, ends = key(VM, PEER, 1, 80), key(PEER, VM, 2, 22, flags=IN), key(VM, PEER, 3, 80)
    one.put(first, value())
    one.put(ends, value())
    f = ferry(one, two)
    until(lambda: len(two.table) == 2)
    one.put(later, value(lifetime=60, flags=0))
    until(lambda: later in two.table)
    one.put(later, value())
    until(lambda: lifetime(two.now()[later]) > 7000)
    one.remove(ends)
    until(lambda: lifetime(two.now()[ends]) <= 1)
    two.remove(ends)
    last = key(VM, PEER, 4, 80)
    one.put(last, value())  # may be seen by the last read only
    out, applied = f.switch()
    assert said(out, "last")["entries"] == 3 and said(applied, "applied")["applied"] == 3, (out, applied)
    assert same(one, two)


def test_lifetimes(pair, ferry):
    """Refreshed there, refreshed here before it ends; one that only runs on is not sent again and again."""
    one, two = pair
    used, idle = key(VM, PEER, 1, 53, 17), key(VM, PEER, 2, 80)
    one.put(used, value(lifetime=4))
    one.put(idle, value(lifetime=8000))
    f = ferry(one, two)
    until(lambda: len(two.table) == 2)
    one.put(used, value(lifetime=60, packets=9))
    until(lambda: lifetime(two.now()[used]) > 55)
    exports = len(one.requests)
    imports = len(two.requests)
    until(lambda: len(one.requests) > exports + 5)
    one.put(used, value(lifetime=61, packets=10))  # less than a quarter more
    until(lambda: len(one.requests) > exports + 10)
    assert len(two.requests) == imports
    f.switch()
    assert same(one, two)


def test_addresses(pair, ferry):
    """One export for each IPv4 address; IPv6 has none; what is not the VM's is refused."""
    one, two = pair
    one.put(key(VM, PEER, 1, 80), value())
    one.put(key("10.0.0.6", PEER, 2, 80), value())
    one.put(key("10.0.0.7", PEER, 3, 80), value())
    ferry(one, two, address=(VM, "fd00::5", "10.0.0.6")).switch()
    assert {k[4:8] for k in two.table} == {bytes([10, 0, 0, 5]), bytes([10, 0, 0, 6])}
    assert {a for what, a in one.requests if what == "export"} == {VM, "10.0.0.6"}
    stream = tool("dump", f"--cilium={one.path}", "-a", VM, "-a", "10.0.0.6")[0]
    two.table.clear()
    out = tool("apply", "--json", f"--cilium={two.path}", "--settle=1", "-a", VM, stdin=stream)[1]
    assert (said(out, "applied")["applied"], said(out, "applied")["reasons"]) == (1, {"not-ours": 1})
    out = tool("apply", "--json", f"--cilium={two.path}", "--settle=1", "-a", VM, "-a", "10.0.0.6", "--max-entries=1", stdin=stream)[1]
    assert said(out, "applied")["reasons"] == {"limit": 1}
    assert "IPv4 addresses only" in tool("dump", f"--cilium={one.path}", "-a", "fd00::5", status=1)[1]
    assert "neither mark nor zone" in tool("dump", f"--cilium={one.path}", "-a", VM, "-m", "1", status=1)[1]


@pytest.mark.parametrize("what", ["version 2", "no version", "500", "cut", "gone"])
def test_bad_exports(pair, what):
    """Refused with a reason, and nothing of it is taken; an agent that names no version writes version 1."""
    one, _ = pair
    one.put(key(VM, PEER, 1, 80), value())
    one.put(key(VM, PEER, 2, 80), value())
    words = ["dump", f"--cilium={one.path}", "-a", VM]
    if what == "no version":
        one.version = None
        assert len(json.loads("[" + ",".join(tool("show", "--json", stdin=tool(*words)[0])[0].decode().splitlines()) + "]")) == 2
        return
    if what == "version 2":
        one.version = "2"
    elif what == "500":
        one.status = 500
    elif what == "cut":
        one.cut = lambda body: body[:-1]
    else:
        words[1] = "--cilium=/nowhere/cilium.sock"
    out, text = tool(*words, status=1)
    expected = {"version 2": "unknown version", "500": "answers 500", "cut": "middle of an entry", "gone": "Cilium"}[what]
    assert expected in text and not out, text


@pytest.mark.parametrize("status, why", [(400, "version 1 is not known"), (500, "answers 500")])
def test_refused_import(pair, status, why):
    """Counted with the agent's reason; it is no error of the stream."""
    one, two = pair
    for port in range(3):
        one.put(key(VM, PEER, port, 80), value())
    stream = tool("dump", f"--cilium={one.path}", "-a", VM)[0]
    two.status = status
    applied = said(tool("apply", "--json", f"--cilium={two.path}", "--settle=1", "-a", VM, stdin=stream)[1], "applied")
    assert (applied["applied"], applied["failed"]) == (0, 3) and why in applied["first_refused"], applied


def test_cut_stream_undone(pair):
    """--undo-if-cut: what was imported is told to end."""
    one, two = pair
    one.put(key(VM, PEER, 1, 80), value())
    stream = tool("dump", f"--cilium={one.path}", "-a", VM)[0]
    tool("apply", f"--cilium={two.path}", "--undo-if-cut", "-a", VM, stdin=stream[:-20], status=1)
    assert [lifetime(v) <= 1 for v in two.now().values()] == [True]
    assert two.requests == [("import", 68)] * 2


def test_agent_hangs(pair, ferry):
    """The switch waits for it no longer than it may, and says that what is there may be old; another one is asked again later."""
    one, two = pair
    one.put(key(VM, PEER, 1, 80), value())
    f = ferry(one, two)
    until(lambda: len(two.table) == 1)
    one.free.clear()
    asked = len(one.requests)
    until(lambda: len(one.requests) > asked)
    out, applied = f.switch(status=1)
    assert "may be old" in out, out
    assert said(applied, "applied")["applied"] == 1 and len(two.table) == 1


def test_agent_restarts(pair, ferry, tmp_path):
    """While it is away nothing is taken to have ended."""
    one, two = pair
    one.put(key(VM, PEER, 1, 80), value())
    f = ferry(one, two)
    until(lambda: len(two.table) == 1)
    one.status = 503
    asked = len(one.requests)
    until(lambda: len(one.requests) > asked + 3)
    assert [lifetime(v) > 7000 for v in two.now().values()] == [True]
    one.status = 200
    one.put(key(VM, PEER, 2, 80), value())
    until(lambda: len(two.table) == 2)
    f.switch()
    assert same(one, two)


def test_tables_do_not_mix(pair):
    """Cilium's entries are none for the kernel, nor the other way round; text has no place for them."""
    one, two = pair
    one.put(key(VM, PEER, 1, 80), value())
    assert tool("dump", f"--cilium={one.path}", "-a", VM, "--format=save")[0] == b""
    line = f"-A -s {VM} -d {PEER} -r {PEER} -q {VM} -p udp --sport 1 --dport 2 --reply-port-src 2 --reply-port-dst 1 -t 30 -u SEEN_REPLY\n"
    applied = said(tool("apply", "--json", f"--cilium={two.path}", "--settle=1", "-a", VM, stdin=line.encode())[1], "applied")
    assert applied["reasons"] == {"unsupported": 1} and not two.table
    if os.geteuid() == 0:
        stream = tool("dump", f"--cilium={one.path}", "-a", VM)[0]
        done = subprocess.run(["unshare", "-n", TOOL, "apply", "--json", "--settle=1", "-a", VM], input=stream, stderr=subprocess.PIPE,
                              timeout=LIMIT)
        assert said(done.stderr.decode(), "applied")["reasons"] == {"unsupported": 1}


def test_many(pair, ferry):
    """More than one import's worth."""
    one, two = pair
    for n in range(20000):
        one.put(key(VM, PEER, n, 80 + n // 65536), value())
    whole = one.export(VM)
    one.export = lambda address: whole  # made in Python each time, it would not always come within the 200 ms of a switch
    ferry(one, two).switch()
    assert same(one, two)
    assert len([r for r in two.requests if r[0] == "import"]) >= 3
