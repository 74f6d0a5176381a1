# SPDX-License-Identifier: GPL-2.0-or-later
"""vmferry-conntrack gate: who waits is held until the entries are here, and no longer than it may be."""
import contextlib
import json
import socket
import struct
import subprocess
import time

import pytest

import ciliumd
from ciliumd import key, lifetime, value
from test_cilium import PEER, VM, said, tool
from test_conntrack import LIMIT, TOOL, until

ENTRY = key(VM, PEER, 1, 80) + value()


def frame(data, version=1, length=None):
    return struct.pack(">BI", version, len(data) if length is None else length) + data


class Gate:
    def __init__(self, directory, agent, *words, hold="200ms"):
        self.path, self.agent = directory / "gate.sock", agent
        self.log = directory / "gate.log"
        self.process = subprocess.Popen([TOOL, "gate", str(self.path), "--json", f"--cilium={agent.path}", "-a", VM, "--settle=1",
                                         f"--hold={hold}", *words], stderr=self.log.open("w"))
        until(self.path.exists)
        until(lambda: "listening" in self.log.read_text())

    def connect(self, data=b""):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(LIMIT)
        s.connect(str(self.path))
        s.sendall(data)
        return s

    def wait(self):
        """Return: the answer, and after how many ms."""
        begin = time.monotonic()
        with self.connect(b"wait\n") as s, s.makefile() as f:
            return f.readline().strip(), (time.monotonic() - begin) * 1000

    def send(self, data):
        with self.connect(data) as s:
            s.shutdown(socket.SHUT_WR)

    def status(self):
        with self.connect(b"status\n") as s, s.makefile() as f:
            return json.loads(f.readline())

    def imported(self, n=1):
        until(lambda: self.log.read_text().count('"imported"') >= n)
        return said(self.log.read_text(), "imported")

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(LIMIT)


@pytest.fixture
def agent(tmp_path):
    with ciliumd.agents(tmp_path, "agent") as (one,):
        yield one


@pytest.fixture
def gate(tmp_path, agent):
    made = []

    def make(*words, **more):
        made.append(Gate(tmp_path, agent, *words, **more))
        return made[-1]
    yield make
    for one in made:
        one.close()


def test_data_before_hook(gate, agent):
    g = gate()
    assert g.status()["state"] == "pending"
    g.send(frame(ENTRY))
    assert (g.imported()["state"], g.imported()["applied"]) == ("done", 1)
    assert g.wait()[0] == "ok" and list(agent.table) == [ENTRY[:14]]
    assert g.status() == {"state": "pending", "exports": {"success": 0, "skipped": 0, "error": 0}, "exported_bytes": 0,
                          "imports": {"success": 1, "aborted": 0, "error": 0}, "gate_waits": {"completed": 1, "timeout": 0}}


def test_hook_before_data(gate, agent):
    """It waits for data that come, also with an import that is under way."""
    g = gate(hold="20s")
    agent.free.clear()
    with g.connect(b"wait\n") as hook, g.connect(frame(ENTRY)):
        until(lambda: agent.requests)
        assert g.status()["state"] == "in-progress"
        hook.settimeout(0.1)
        with pytest.raises(TimeoutError):
            hook.recv(1)
        agent.free.set()
        hook.settimeout(LIMIT)
        assert hook.recv(16) == b"ok\n" and agent.table
        assert hook.recv(1) == b""


def test_no_data(gate):
    """At least as long as it is to hold; the upper bound, 300 ms, is that of a machine that is not loaded."""
    g = gate()
    times = []
    while not times or (min(times) >= 300 and len(times) < 40):
        answer, ms = g.wait()
        assert answer == "ok" and ms >= 200
        times.append(ms)
    assert min(times) < 300, times
    assert g.status()["gate_waits"]["timeout"] == len(times) and not g.status()["gate_waits"]["completed"]


def test_import_hangs(gate, agent):
    """The import takes too long: who waits is let through all the same; what comes late is imported, and is not the next one's."""
    g = gate()
    agent.free.clear()
    with g.connect(frame(ENTRY)):
        until(lambda: agent.requests)
        answer, ms = g.wait()
        assert answer == "ok" and ms >= 200 and g.status()["state"] == "timed-out"
        agent.free.set()
        assert g.imported()["state"] == "done"
    assert agent.table and g.status()["state"] == "pending"


@pytest.mark.parametrize("data", [b"", ENTRY, ENTRY * (65536 // 68)], ids=["empty", "one", "64KiB"])
def test_sizes(gate, data):
    g = gate()
    g.send(frame(data))
    got = g.imported()
    assert (got["state"], got["applied"]) == ("done", min(len(data), 1))
    assert g.wait()[0] == "ok"


@pytest.mark.parametrize("data, why", [
    (frame(ENTRY * 3)[:-1], "middle of a frame"),
    (frame(ENTRY)[:3], "middle of a frame"),
    (frame(ENTRY[:-1]), "middle of an entry"),
    (frame(b"", length=0xffffffff), "too large"),
    (frame(b"", length=68 * 1000001), "too large"),
    (frame(ENTRY, version=2), "unknown version"),
    (frame(ENTRY, version=0), "unknown version"),
    (b"VFCTrubbish that is long enough for a header", ""),
], ids=["truncated", "header", "entry", "4GiB", "million", "version2", "version0", "wire"])
def test_bad_frames(gate, agent, data, why):
    """Refused with a reason, nothing of it imported; who waits is let through at once, and a good one after it counts."""
    g = gate(hold="20s")
    with g.connect(b"wait\n") as hook:
        g.send(data)
        assert hook.recv(16) == b"ok\n"
    assert why in g.imported()["why"] and not agent.table
    g.send(frame(ENTRY))
    assert g.imported(2)["state"] == "done" and g.wait()[0] == "ok" and agent.table


def test_slow_bytes(gate):
    g = gate(hold="20s")
    with g.connect(b"wait\n") as hook, g.connect() as source:
        for byte in frame(ENTRY):
            source.send(bytes([byte]))
        assert hook.recv(16) == b"ok\n"


def test_retry_starts_clean(gate, agent):
    """A newer source takes the place of one that hangs; what that one brought is undone."""
    other = key(VM, PEER, 2, 80) + value()
    g = gate(hold="20s")
    stream = tool("dump", "--cilium=" + agent.path, "-a", VM)[0]
    agent.put(ENTRY[:14], ENTRY[14:])
    table = tool("dump", "--cilium=" + agent.path, "-a", VM)[0]
    agent.table.clear()
    assert table.endswith(stream)  # the mark that ends it
    with g.connect(table[:-len(stream)]) as old, g.connect(b"wait\n") as hook:
        until(lambda: agent.table)
        g.send(frame(other))
        assert hook.recv(16) == b"ok\n"
        assert old.recv(1) == b""
    assert lifetime(agent.now()[ENTRY[:14]]) <= 1 and lifetime(agent.now()[other[:14]]) > 7000
    assert (g.status()["imports"]["success"], g.status()["imports"]["aborted"]) == (1, 1)


def test_followed_until_the_switch(gate, agent, tmp_path):
    """Not a frame but what follow writes: the gate opens at the mark of the switch, and connections opened until then are there."""
    with ciliumd.agents(tmp_path, "source") as (source,):
        source.put(ENTRY[:14], ENTRY[14:])
        g = gate(hold="20s")
        follow = subprocess.Popen([TOOL, "follow", f"--cilium={source.path}", "--resync=50", "-a", VM], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        sender = subprocess.Popen([TOOL, "send", str(g.path)], stdin=follow.stdout)
        follow.stdout.close()
        with g.connect(b"wait\n") as hook:
            until(lambda: len(agent.table) == 1)
            source.put(key(VM, PEER, 2, 80), value())
            follow.stdin.close()
            assert hook.recv(16) == b"ok\n"
        assert len(agent.table) == 2 and follow.wait(LIMIT) == sender.wait(LIMIT) == 0


def test_frame_of_dump(gate, agent, tmp_path):
    """dump -f frame | send: what Deckhouse's handler would get, byte by byte."""
    with ciliumd.agents(tmp_path, "source") as (source,):
        source.put(ENTRY[:14], ENTRY[14:])
        data = tool("dump", f"--cilium={source.path}", "-a", VM, "--format=frame")[0]
    assert data[:5] == frame(ENTRY)[:5] and data[5:19] == ENTRY[:14] and len(data) == 5 + 68
    g = gate()
    tool("send", str(g.path), stdin=data)
    assert g.imported()["applied"] == 1
    stdin = json.loads(tool("apply", "--json", f"--cilium={agent.path}", "-a", VM, "--settle=1", "--format=frame", stdin=data)[1].splitlines()[0])
    assert stdin["applied"] == 1


def test_hook_program(gate, tmp_path):
    """wait always succeeds: no gate, a gate that says nothing, one that does."""
    answer = json.loads(tool("wait", "--json", str(tmp_path / "none.sock"))[1])
    assert answer["answer"] == "no gate"
    with socket.socket(socket.AF_UNIX) as dumb:
        dumb.bind(str(tmp_path / "dumb.sock"))
        dumb.listen()
        answer = json.loads(tool("wait", "--json", "--limit=50ms", str(tmp_path / "dumb.sock"))[1])
        assert answer["answer"] == "Connection timed out" and answer["usec"] >= 50000
    g = gate()
    g.send(frame(ENTRY))
    g.imported()
    assert json.loads(tool("wait", "--json", str(g.path))[1])["answer"] == "ok"


def test_listener(gate, agent):
    """Twice on one socket is refused; a socket left by one that was killed is no obstacle; the end removes it, mode 0600."""
    g = gate()
    assert g.path.stat().st_mode & 0o777 == 0o600
    assert "another gate" in tool("gate", str(g.path), f"--cilium={agent.path}", "-a", VM, status=1)[1]
    assert g.status()["state"] == "pending"
    g.process.kill()
    g.close()
    assert g.path.exists()
    g = gate()
    waiting = g.connect(b"wait\n")
    with contextlib.closing(waiting):
        assert g.status()["gate_waits"]["completed"] == 0  # it has been heard
        assert g.close() == 0
        assert waiting.recv(16) == b"ok\n"  # nobody is left to wait
    assert not g.path.exists()
    assert said(g.log.read_text(), "ended")["gate_waits"]["completed"] == 0


def test_rude_visitors(gate):
    """Words that are none, half a word and gone, many that say nothing: the gate goes on."""
    g = gate()
    for data in (b"what\n", b"wai", b"waitwaitwait", b"status", b"statusstatusstatusstatus", b""):
        g.connect(data).close()
    crowd = [g.connect() for _ in range(10)]
    for s in crowd:
        s.close()
    g.send(frame(ENTRY))
    assert g.imported()["state"] == "done" and g.wait()[0] == "ok"
