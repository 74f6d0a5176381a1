# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases: who holds it may run the guest. A file on storage that both hosts see (here: one machine's)."""

import json
import os
import re
import shutil
import signal
import subprocess
import zlib

import pytest

from cancel import raw_target
from faults import Storage, everything
from netns import kill
from stays import small
from testbed import LIMIT, Guest, Testbed, build_option, section, wait_file, wait_until

needs_faults = pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")


UUID = "0c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11"


class Leased:
    """web1, whose lease both hosts see; on one of them it runs."""

    def __init__(self, bed):
        self.bed = bed
        self.here, self.there = bed.a, bed.b
        self.dir = bed.dir / "leases"
        self.dir.mkdir()
        self.path = self.dir / "web1"

    def section(self, **keys):
        return section("lease file", path=self.path, **keys)

    def record(self):
        """The newest record of the file, as its fields."""
        data = self.path.read_bytes()
        lines = [data[at : at + 512].split(b"\n")[0].decode(errors="replace") for at in (0, 4096)]
        records = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines if line.startswith("vmferry-lease1")]
        return max(records, key=lambda r: int(r["seq"]))

    def holder(self):
        """(host's name, generation, held as the record says)"""
        r = self.record()
        return r["name"], int(r["generation"]), r["held"] == "1"

    def start(self, host=None, check=True, uuid=UUID, memory="32M", **keys):
        host = host or self.here
        small(host, "web1", 5, self.section(**keys), uuid=uuid, memory=memory)
        return host.vmferry("start", "web1", check=check)

    def lease(self, host):
        return host.status("web1")["lease"]

    def swap(self):
        self.here, self.there = self.there, self.here


@pytest.fixture
def leased(bed):
    for host in bed.hosts:
        host.write_conf("deadlines { connect = 60 prepare = 60 switchover = 20 finish = 10 link = 20 }\n")
    return Leased(bed)


def state(host):
    """(state, reason), ("gone", None) without a keeper."""
    found = host.status("web1") or {}
    return (found["state"], found["reason"]) if found.get("state") not in (None, "off", "moved") else ("gone", None)


def wait_state(host, wanted, reason=None):
    return wait_until(lambda: (now := state(host))[0] == wanted and reason in (None, now[1]) and now)


def keeper(host):
    """The keeper's pid: who holds NAME/lock and is not QEMU."""
    inode = (host.runtime / "web1" / "lock").stat().st_ino
    for line in open("/proc/locks"):
        if f":{inode} " in line and "FLOCK" in line:
            return int(line.split()[4])
    return None


def kill_keeper(host):
    """SIGKILL; when this returns another one is there."""
    pid = keeper(host)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: keeper(host) not in (None, pid) and host.vmferry("status", "web1", check=False).returncode == 0)


def forget(host):
    """As if web1 had never been defined on a host."""
    (host.config / "vms" / "web1.vm").unlink()
    shutil.rmtree(host.state / "web1")


def fault(host, point):
    (host.runtime / "fault").write_text(point + "\n")


def struck(host):
    return not (host.runtime / "fault").exists()


def settled(leased):
    """One host has the guest, and it runs; the other is clean. Swaps them if it moved."""
    def one():
        states = [state(h)[0] for h in (leased.here, leased.there)]
        assert states.count("running") < 2, states
        busy = any((h.status("web1") or {}).get("migration") for h in (leased.here, leased.there))
        return sorted(states) == ["gone", "running"] and not busy and states

    if wait_until(one)[0] == "gone":
        leased.swap()
    assert leased.there.wait_clean() == []
    assert leased.lease(leased.here)["held"]


def test_start_stop(leased):
    """Held while it runs, given back when it is off; the other host is told who has it."""
    a, b = leased.here, leased.there
    leased.start()
    assert leased.holder() == ("a", 1, True)
    assert leased.lease(a) == {"driver": "file", "path": str(leased.path), "held": True, "generation": 1}
    refused = leased.start(b, check=False)
    assert refused.returncode == 1
    assert re.search(rf"web1's lease {leased.path} is held by host a since 2\d\d\d-", refused.stderr), refused.stderr
    assert "held by host a" in leased.start(b, check=False, uuid=None).stderr
    assert b.wait_clean() == []
    a.vmferry("kill", "web1")
    assert leased.holder() == ("a", 1, False)
    refused = leased.start(b, check=False, uuid=UUID[:-1] + "2")
    assert f"belongs to another VM (uuid {UUID})" in refused.stderr
    leased.start(b)
    assert leased.holder() == ("b", 2, True)
    refused = leased.start(a, check=False)
    assert refused.returncode == 1 and "is held by host b" in refused.stderr


def test_there_and_back(leased):
    leased.start()
    for generation in (2, 3):
        result = leased.here.migrate("web1", leased.there, "--transport=tcp")
        assert result["guest"] == "running there"
        leased.swap()
        assert leased.holder() == (leased.here.name, generation, True)
        assert leased.lease(leased.here)["held"]
        assert leased.there.wait_clean() == []


# ---- people ----


def test_pause_and_resume(leased):
    """Paused by a person it is free; resumed it is taken as it was left, or not at all."""
    a, b = leased.here, leased.there
    leased.start()
    a.vmferry("pause", "web1")
    assert leased.holder() == ("a", 1, False)
    a.vmferry("resume", "web1")
    assert leased.holder() == ("a", 2, True)
    a.vmferry("resume", "web1")
    assert leased.holder() == ("a", 2, True)
    a.vmferry("pause", "web1")
    leased.start(b)
    refused = a.vmferry("resume", "web1", check=False)
    assert refused.returncode == 1 and "is held by host b" in refused.stderr, refused.stderr
    assert state(a) == ("paused", "user")
    b.vmferry("kill", "web1")
    refused = a.vmferry("resume", "web1", check=False)
    assert refused.returncode == 1 and "was host b's, and is free" in refused.stderr, refused.stderr
    assert "out of date" in refused.stderr
    assert state(a) == ("paused", "user")


def test_paused_guest_moves_without_it(leased):
    a, b = leased.here, leased.there
    leased.start()
    a.vmferry("pause", "web1")
    a.migrate("web1", b, "--transport=tcp")
    assert state(b) == ("paused", "migrated")
    assert leased.holder() == ("b", 2, False)
    b.vmferry("resume", "web1")
    assert leased.holder() == ("b", 3, True)


def test_paused_guest_does_not_move_once_another_had_it(leased):
    a, b = leased.here, leased.there
    leased.start()
    a.vmferry("pause", "web1")
    leased.start(b)
    b.vmferry("kill", "web1")
    forget(b)
    refused = a.migrate("web1", b, "--transport=tcp", check=False)
    assert refused["status"] == "failed" and "is not the one that the source holds" in refused["error"]["message"]
    assert state(a) == ("paused", "user")


def test_off_it_is_nobodys(leased):
    a, b = leased.here, leased.there
    small(a, "web1", 5, leased.section())
    result = a.migrate("web1", b)
    assert result["guest"] == "shut off" and not leased.path.exists()
    b.vmferry("start", "web1")
    assert leased.holder() == ("b", 1, True)


# ---- keepers ----


def test_outlives_its_keeper(leased):
    a, b = leased.here, leased.there
    leased.start()
    kill_keeper(a)
    assert leased.lease(a)["held"] and leased.holder() == ("a", 1, True)
    assert "is held by host a" in leased.start(b, check=False).stderr
    forget(b)
    a.migrate("web1", b, "--transport=tcp")
    kill_keeper(b)
    assert state(b)[0] == "running" and leased.holder() == ("b", 2, True)
    b.vmferry("pause", "web1")
    kill_keeper(b)
    assert not leased.lease(b)["held"] and leased.holder() == ("b", 2, False)
    b.vmferry("resume", "web1")
    assert leased.holder() == ("b", 3, True)


def test_qemu_killed_frees_it(leased):
    a, b = leased.here, leased.there
    leased.start()
    os.kill(a.status("web1")["pid"], signal.SIGKILL)
    wait_state(a, "gone")
    assert leased.holder() == ("a", 1, False)
    leased.start(b)
    assert leased.holder() == ("b", 2, True)


def test_goes_with_an_upgrade(leased):
    """The new QEMU holds the same description: it stays held, and outlives the keeper as before."""
    a, b = leased.here, leased.there
    leased.start()
    a.vmferry("upgrade", "web1")
    assert leased.lease(a)["held"] and leased.holder() == ("a", 1, True)
    kill_keeper(a)
    assert leased.lease(a)["held"]
    assert "is held by host a" in leased.start(b, check=False).stderr
    a.vmferry("pause", "web1")
    assert leased.holder() == ("a", 1, False)


# ---- lost ----


def test_lost_kills(leased):
    a = leased.here
    leased.start()
    pid = a.status("web1")["pid"]
    other = leased.dir / "other"
    other.write_bytes(b"")
    other.rename(leased.path)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert a.wait_clean() == []
    log = [json.loads(line) for line in a.vmferry("log", "web1", "--json").stdout.splitlines()]
    assert [e["event"] for e in log][-2:] == ["lease lost", "lease lost"], log
    assert "was replaced" in log[-2]["details"]["why"]


def test_lost_pauses(leased):
    a = leased.here
    leased.start(on_lost="pause")
    away = leased.dir / "away"
    leased.path.rename(away)
    wait_state(a, "paused", "lease lost")
    refused = a.vmferry("resume", "web1", check=False)
    assert refused.returncode == 1 and "No such file" in refused.stderr, refused.stderr
    away.rename(leased.path)
    a.vmferry("resume", "web1")  # nobody has had it
    assert state(a)[0] == "running" and leased.holder() == ("a", 2, True)


def test_lost_without_a_keeper(leased):
    """What happened to it while no keeper looked is seen by the next one."""
    a = leased.here
    leased.start()
    pid, qemu = keeper(a), a.status("web1")["pid"]
    parent = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    leased.path.unlink()
    os.kill(parent, signal.SIGCONT)
    wait_until(lambda: not os.path.exists(f"/proc/{qemu}"))
    assert a.wait_clean() == []


def given_back(leased):
    """What a worker that was given up has written, and not yet synced, when it dies: that it is given back."""
    old = leased.record() | {"held": "0"}
    old["seq"] = str(int(old["seq"]) + 1)
    body = " ".join(f"{key}={old[key]}" for key in ("seq", "generation", "held", "since", "vm", "holder", "name"))
    with open(leased.path, "r+b") as file:
        file.seek(int(old["seq"]) % 2 * 4096)
        file.write(f"vmferry-lease1 {zlib.crc32(body.encode()):08x} {body}\n".encode().ljust(512, b"\0"))


@pytest.mark.parametrize("paused", [False, True])
def test_given_back_without_a_keeper(leased, paused):
    """The record says so, and the next keeper finds the guest here: it takes the lease again, and nobody else has had it. A paused guest does without."""
    a, b = leased.here, leased.there
    leased.start()
    pid = keeper(a)
    parent = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGSTOP)
    if paused:
        a.vmferry("pause", "web1")
    os.kill(pid, signal.SIGKILL)
    if not paused:
        given_back(leased)
    os.kill(parent, signal.SIGCONT)
    wait_until(lambda: keeper(a) not in (None, pid) and a.vmferry("status", "web1", check=False).returncode == 0)
    if paused:
        assert leased.holder() == ("a", 1, False) and not leased.lease(a)["held"]
        a.vmferry("resume", "web1")
    wait_until(lambda: leased.holder() == ("a", 2, True))
    wait_until(lambda: leased.lease(a)["held"] and "answers" not in leased.lease(a))
    assert state(a)[0] == "running" and "is held by host a" in leased.start(b, check=False).stderr
    forget(b)


def test_lost_in_a_migration(leased):
    a, b = leased.here, leased.there
    leased.start(on_lost="pause", memory="128M")
    mover = a.popen("vmferry", "migrate", "web1", b.exec_destination(), "--transport=tcp", "--bandwidth=64K",
                    "--progress=none", "--json", stdout=-1, stderr=-1, text=True)
    wait_until(lambda: (a.status("web1").get("migration") or {}).get("state") == "perform")
    leased.path.unlink()
    out, err = mover.communicate(timeout=LIMIT)
    assert mover.returncode == 1, out + err
    assert "No such file" in json.loads(out.strip().split("\n")[-1])["error"]["message"]
    assert a.wait_clean() == [] and b.wait_clean() == []


# ---- storage that does not answer ----

@pytest.fixture
def storage(leased):
    found = Storage(leased.dir)
    leased.path = found.dir / "web1"
    yield found
    found.close()


def test_storage_that_does_not_answer(leased, storage):
    """In the hand-over: the keeper goes on answering, gives up at its deadline, and the guest runs on with its lease."""
    a, b = leased.here, leased.there
    leased.start()
    storage.freeze(True)
    mover = a.popen("vmferry", "migrate", "web1", b.exec_destination(), "--transport=tcp", "--progress=none", "--json",
                    stdout=-1, stderr=-1, text=True)
    wait_until(lambda: (a.status("web1").get("migration") or {}).get("state") == "release")
    late = a.vmferry("cancel", "web1", check=False)
    assert late.returncode != 0 and "too late" in late.stderr.lower(), late
    out, err = mover.communicate(timeout=LIMIT)
    result = json.loads(out.strip().split("\n")[-1])
    wanted = f"the lease's storage does not answer ({leased.path})"
    assert mover.returncode == 1 and result["error"]["message"] == wanted and result["guest"] == "running here", out + err
    assert wait_state(a, "running") and b.wait_clean() == []
    assert leased.lease(a)["held"] and leased.lease(a)["answers"] is False
    refused = a.migrate("web1", b, "--transport=tcp", check=False)
    assert wanted in json.dumps(refused), refused
    storage.freeze(False)
    wait_until(lambda: "answers" not in leased.lease(a))
    # What had been begun came true a while after: it says that a gave the lease back. But that was not done.
    wait_until(lambda: leased.holder() == ("a", 1, True))
    assert state(a)[0] == "running" and "is held by host a" in leased.start(b, check=False).stderr
    forget(b)
    a.migrate("web1", b, "--transport=tcp")
    leased.swap()
    settled(leased)
    assert leased.holder() == ("b", 2, True)


@needs_faults
@pytest.mark.parametrize("what", ["the lease's storage"])
def test_look_that_does_not_end(leased, what):
    """On the target, before anything is begun: it goes on answering, and says what it was that did not."""
    a, b = leased.here, leased.there
    b.write_conf("deadlines { connect = 5 prepare = 4 switchover = 3 finish = 3 link = 3 }\n")
    leased.start()
    (b.config / "silent").write_text(what)
    mover = a.popen("vmferry", "migrate", "web1", b.exec_destination(), "--transport=tcp", "--progress=none", "--json",
                    stdout=-1, stderr=-1, text=True)
    wait_until(lambda: (a.status("web1").get("migration") or {}).get("state") == "prepare")
    assert b.vmferry("status", "web1", check=False).returncode == 0  # while it looks
    out, err = mover.communicate(timeout=LIMIT)
    result = json.loads(out.strip().split("\n")[-1])
    wanted = f"{what} does not answer on b ({leased.path})"
    assert wanted in result["error"]["message"] and result["guest"] == "running here", out + err
    assert b.wait_clean() == [] and state(a)[0] == "running" and leased.holder() == ("a", 1, True)
    (b.config / "silent").unlink()
    a.migrate("web1", b, "--transport=tcp")
    leased.swap()
    settled(leased)


# ---- refused ----


@pytest.mark.parametrize("features", [None, ["conntrack", "run-state"]])
def test_target_that_knows_no_leases(leased, features):
    """It could not take it over; it is refused before anything is asked of it."""
    leased.start()
    target = raw_target(leased.here, "no-leases", {"hello": {"features": features}})
    result = leased.here.migrate("web1", target, "--transport=tunnel", check=False)
    assert result["error"]["message"] == "vmferry on fake cannot take over a lease" and result["guest"] == "running here", result
    assert "prepare" not in result["phases"], result
    assert leased.lease(leased.here)["held"] and leased.holder() == ("a", 1, True)


@pytest.mark.parametrize("verb", ["check", "migrate"])
def test_other_lease_there_is_refused(leased, verb):
    """By name, before anything moves: no lease, another driver, another file."""
    a, b = leased.here, leased.there
    leased.start()
    a.vmferry("kill", "web1")
    other = leased.dir / "other"
    shutil.copy(leased.path, other)  # of this VM, but one generation behind
    leased.start()
    text = a.vmferry_json("show", "web1")
    text = (text[0] if isinstance(text, list) else text)["text"]
    at = text.index("lease file {")
    end = text.index("}", at) + 1
    cases = {
        "": "the lease's driver is file on the source, and none in the definition for b",
        'lease sanlock { path = "/x" lockspace = "vms" }': "is file on the source, and sanlock in the definition for b",
        section("lease file", path=leased.dir / "none"): "none: No such file",
        section("lease file", path=other): "is not the one that the source holds",
    }
    for lease, wanted in cases.items():
        definition = a.dir / "to.vm"
        definition.write_text(text[:at] + lease + text[end:])
        done = a.vmferry(verb, "web1", b.exec_destination(), f"--to-definition={definition}", check=False)
        assert done.returncode == 1 and wanted in done.stdout + done.stderr, done.stdout + done.stderr
    assert b.wait_clean() == [] and state(a)[0] == "running" and leased.holder() == ("a", 2, True)


# ---- faults ----


@needs_faults
@pytest.mark.parametrize("point", [
    "source:RELEASE_LEASE:before:self", "source:RELEASE_LEASE:after:self", "source:SEND_FINISH:after:link",
    "target:ACQUIRE_LEASE:after:link", "target:JOURNAL_COMMITTED:after:self",
    *(pytest.param(point, marks=pytest.mark.long) for point in (
        "source:JOURNAL_COMMIT:after:self", "source:RELEASE_LEASE:after:link", "source:SEND_FINISH:before:link",
        "source:SEND_FINISH:after:self", "target:ACQUIRE_LEASE:before:self", "target:ACQUIRE_LEASE:before:link",
        "target:JOURNAL_COMMITTED:before:self", "target:JOURNAL_COMMITTED:after:link", "target:CONT:after:self")),
])
def test_fault(leased, point):
    """Around the hand-over: one host has lease and guest, whoever dies."""
    side, point = point.split(":", 1)
    leased.start()
    host = leased.here if side == "source" else leased.there
    fault(host, point)
    done = leased.here.migrate("web1", leased.there, "--transport=tcp", check=False)
    assert struck(host), done
    settled(leased)
    assert leased.holder()[0] == leased.here.name and leased.holder()[2]
    leased.here.migrate("web1", leased.there, "--transport=tcp")
    leased.swap()
    settled(leased)


@needs_faults
def test_taken_back_from_a_target_that_died(leased):
    """Between its lease and its journal: it says Never, and (target, one generation on) is good enough."""
    leased.start()
    fault(leased.there, "ACQUIRE_LEASE:after:self")
    leased.here.migrate("web1", leased.there, "--transport=tcp", check=False)
    settled(leased)
    assert leased.here.name == "a" and leased.holder() == ("a", 3, True)


@needs_faults
def test_decides_in_doubt(leased):
    """Committed, and the target cannot be reached any more: the lease was not taken, so the guest goes on at once."""
    a, b = leased.here, leased.there
    leased.start()
    once = a.dir / "once"
    once.write_text(f"#!/bin/sh\n[ -e {once}.used ] && exit 1\ntouch {once}.used\nexec {b.exec_destination()[5:]}\n")
    once.chmod(0o755)
    fault(a, "RELEASE_LEASE:after:link")
    done = a.migrate("web1", f"exec:{once}", "--transport=tcp", check=False)
    assert done["status"] == "failed" and done["guest"] == "running here", done
    assert "the lease was still this host's" in done["error"]["message"]
    assert leased.holder() == ("a", 2, True)
    settled(leased)


def reboot(host):
    """Everything on it killed, the runtime directory lost."""
    kill(everything(host))
    wait_until(lambda: not host.processes())
    shutil.rmtree(host.runtime)
    host.runtime.mkdir()


@needs_faults
@pytest.mark.parametrize("point", ["source:RELEASE_LEASE:after", "target:ACQUIRE_LEASE:after", "target:JOURNAL_COMMITTED:after",
                                   pytest.param("source:RELEASE_LEASE:before", marks=pytest.mark.long)])
def test_both_reboot(leased, point):
    """In the middle of the hand-over: one of them can start it again, and only one."""
    a, b = leased.here, leased.there
    leased.start()
    side, point = point.split(":", 1)
    host = a if side == "source" else b
    fault(host, point + ":reboot")
    mover = a.popen("vmferry", "migrate", "web1", b.exec_destination(), "--transport=tcp", "--progress=none", "--json")
    wait_until(lambda: struck(host))
    mover.kill()
    mover.wait()
    reboot(a)
    reboot(b)
    # Its keeper asks the other host, or the lease, and starts it if the guest is its own: it was told to.
    answers = [a.vmferry("start", "web1", check=False)]
    wait_until(lambda: state(a)[0] in ("gone", "running"))
    answers.append(b.vmferry("start", "web1", check=False))
    started = [h for h in (a, b) if state(h)[0] == "running"]
    assert started == [b if point.startswith("JOURNAL") else a], [answer.stderr for answer in answers]
    assert leased.holder()[0] == started[0].name and leased.holder()[2]
