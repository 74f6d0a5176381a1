# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator does and sees: keepers that die and come back, a migration that is watched, tuned, cancelled, too slow."""

import json
import os
import select
import signal
import subprocess
import time

import pytest

from testbed import LIMIT, Guest, Testbed, build_option, wait_until

LOADED = "fill 64"  # random memory, so that a move takes a while at a given bandwidth


@pytest.fixture(scope="module")
def bed():
    with Testbed() as bed:
        yield bed


@pytest.fixture(scope="module")
def home(bed):
    """[host, other]: where web1 is; tests that move it swap them."""
    bed.a.start("web1", Guest(), memory="256M")
    bed.ask(Guest(), LOADED)
    return [bed.a, bed.b]


@pytest.fixture
def probe(bed, home):
    """A connection that must live through the test."""
    with bed.probe(f"ping,{Guest().ip4}") as probe:
        probe.mark()
        yield probe
        probe.assert_alive()
    here, there = home
    assert here.status("web1")["state"] == "running"
    assert there.wait_clean() == []


def keeper(host, name="web1"):
    """The keeper's pid: who holds NAME/lock and is not QEMU."""
    inode = (host.runtime / name / "lock").stat().st_ino
    for line in open("/proc/locks"):
        if f":{inode} " in line and "FLOCK" in line:
            return int(line.split()[4])
    return None


def slow(home, *options, **kwargs):
    """A migration that takes its time, in the background, once it copies memory."""
    here, there = home
    mover = here.popen("vmferry", "migrate", "web1", there.exec_destination(), "--transport=tcp", "--bandwidth=4M",
                       "--progress=none", "--json", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)
    wait_until(lambda: (here.status("web1").get("migration") or {}).get("state") == "perform")
    return mover


def ended(mover, status, limit=LIMIT):
    out, err = mover.communicate(timeout=limit)
    assert mover.returncode == status, out + err
    return json.loads(out.strip().split("\n")[-1])


def test_keeper_killed_when_nothing_happens(bed, home, probe):
    here, _ = home
    pid, qemu = keeper(here), here.status("web1")["pid"]
    os.kill(pid, signal.SIGKILL)
    begin = time.monotonic()
    wait_until(lambda: keeper(here) not in (None, pid) and here.vmferry("status", "web1", check=False).returncode == 0)
    assert time.monotonic() - begin < 10
    assert here.status("web1")["pid"] == qemu and here.status("web1")["state"] == "running"


def test_keeper_killed_while_memory_moves(bed, home, probe):
    mover = slow(home)
    os.kill(keeper(home[0]), signal.SIGKILL)
    mover.communicate(timeout=LIMIT)
    assert mover.returncode == 1
    wait_until(lambda: home[0].status("web1")["state"] == "running" and not home[0].status("web1").get("migration"))


def test_target_keeper_killed_while_memory_moves(bed, home, probe):
    mover = slow(home)
    os.kill(keeper(home[1]), signal.SIGKILL)
    assert ended(mover, 1)["guest"] == "running here"


def test_size_and_wakeups(bed, home):
    def counters():
        text = open(f"/proc/{pid}/status").read()
        return {k: int(v.split()[0]) for k, v in (line.split(":") for line in text.splitlines()) if k in ("VmRSS", "voluntary_ctxt_switches")}

    if build_option("b_sanitize") != "none":
        pytest.skip("a sanitizer's size says nothing")
    pid = keeper(home[0])
    for _ in range(5):  # what came before may still have its end to tell
        before = counters()
        select.select([], [], [], 3)  # idle is what is measured
        after = counters()
        if after["voluntary_ctxt_switches"] == before["voluntary_ctxt_switches"]:
            break
    else:
        pytest.fail(f"wakes up when nothing happens: {before} {after}")
    assert after["VmRSS"] <= 6 * 1024, after


def test_watch_status_and_second_migration(bed, home, probe):
    here, there = home
    mover = slow(home)
    watcher = here.popen("vmferry", "watch", "web1", "--json", stdout=subprocess.PIPE, text=True)
    assert json.loads(watcher.stdout.readline())["phase"] == "Perform"
    migration = here.status("web1")["migration"]
    assert migration["phase"] == "Perform" and migration["transport"] == "tcp" and migration["total"] >= 0
    again = here.vmferry("migrate", "web1", there.exec_destination(), check=False)
    assert again.returncode == 1 and "under way already" in again.stderr
    here.vmferry("cancel", "web1")
    assert ended(mover, 1)["status"] == "cancelled"
    out, _ = watcher.communicate(timeout=LIMIT)
    assert json.loads(out.strip().split("\n")[-1])["status"] == "cancelled"


def test_cancel_is_quick_and_may_be_repeated(bed, home, probe):
    for _ in range(3):
        mover = slow(home)
        begin = time.monotonic()
        home[0].vmferry("cancel", "web1")
        assert time.monotonic() - begin < 10
        result = ended(mover, 1)
        assert result["status"] == "cancelled" and result["guest"] == "running here"
        assert home[1].wait_clean() == []
    refused = home[0].vmferry("cancel", "web1", check=False)
    assert refused.returncode == 1 and "no migration" in refused.stderr


def test_interrupt_cancels(bed, home, probe):
    mover = slow(home)
    mover.send_signal(signal.SIGINT)
    result = ended(mover, 1)
    assert result["status"] == "cancelled"


def test_bandwidth_is_raised_while_it_runs(bed, home, probe):
    here, there = home
    mover = slow(home)
    here.vmferry("set", "web1", "bandwidth=1G", "downtime=500")
    result = ended(mover, 0)
    assert result["status"] == "completed" and result["guest"] == "running there"
    home.reverse()


def test_paused_by_a_person_while_memory_moves(bed, home):
    here, there = home
    mover = slow(home)
    here.vmferry("pause", "web1")
    here.vmferry("set", "web1", "bandwidth=1G")
    assert ended(mover, 0)["guest"] == "paused there"
    home.reverse()
    assert there.status("web1")["state"] == "paused"
    there.vmferry("resume", "web1")


def test_does_not_converge(bed, home, probe):
    """A guest that writes faster than the way carries: said with figures; --timeout gives up."""
    bed.ask(Guest(), "dirty 60")
    try:
        mover = home[0].popen("vmferry", "migrate", "web1", home[1].exec_destination(), "--transport=tcp", "--bandwidth=30M",
                              "--downtime=1", "--timeout=14", "--throttle=off", "--json", "--progress=none", stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
        result = ended(mover, 1)
    finally:
        bed.ask(Guest(), "stop")
    assert result["status"] == "failed" and result["guest"] == "running here"
    assert "predicted pause" in result["error"]["message"] and result["error"]["hint"]
    assert any("does not converge" in w for w in result["warnings"]), result


def test_not_live(bed, home, probe):
    here, there = home
    result = here.migrate("web1", there, "--transport=tcp", "--no-live")
    home.reverse()
    assert result["status"] == "completed"


def test_data_stream_is_cut(bed, home, probe):
    """tcp, the hosts' link cut while memory moves: the source gives up within the link's time, the target too."""
    here, there = home
    mover = here.popen("vmferry", "migrate", "web1", there.ssh, "--transport=tcp", "--bandwidth=4M", "--json", "--progress=none",
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (here.status("web1").get("migration") or {}).get("state") == "perform")
    begin = time.monotonic()
    there.cut()
    try:
        result = ended(mover, 1)
        assert "silent" in result["error"]["message"], result
        assert time.monotonic() - begin < 20
        assert there.wait_clean() == []
    finally:
        there.heal()


def test_log_tells_the_story(bed, home):
    lines = home[0].vmferry("log", "web1", "--json").stdout.splitlines()
    events = [json.loads(line).get("event") for line in lines]
    assert "arrived" in events or "started" in events


def test_offline(bed):
    guest = Guest(7)
    a, b = bed.a, bed.b
    a.define("cold", guest)
    done = a.vmferry("migrate", "cold", b.exec_destination())
    assert "VM is not running, doing an offline migration instead" in done.stderr
    assert a.wait_clean("cold") == [] and b.wait_clean("cold") == []
    refused = a.vmferry("start", "cold", check=False)
    assert refused.returncode == 1 and "moved to b" in refused.stderr
    b.vmferry("start", "cold")
    assert b.status("cold")["state"] == "running"
    b.vmferry("kill", "cold")
    back = b.vmferry_json("migrate", "cold", a.exec_destination())
    assert back["status"] == "completed" and back["guest"] == "shut off"
    a.vmferry("start", "cold")
    a.vmferry("kill", "cold")


def test_autostart_and_stop_all(bed):
    bed.b.define("boot", Guest(8), autostart=True)
    bed.b.vmferry("start", "--autostart")
    assert bed.b.status("boot")["state"] == "running"
    bed.b.vmferry("kill", "boot")


def test_console_goes_both_ways(bed, home):
    console = home[0].popen("vmferry", "console", "web1", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    console.stdin.close()
    console.wait(LIMIT)
    assert (home[0].runtime / "web1" / "console.log").exists()
