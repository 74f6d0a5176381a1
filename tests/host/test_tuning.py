# SPDX-License-Identifier: GPL-2.0-or-later
"""One wait loop for all transports: figures, pause, limits, throttle and cancel while memory moves, and its deadlines."""

import contextlib
import json
import os
import signal
import subprocess

import pytest

from cancel import TAKES, raw_target
from stays import small
from test_running import LOADED, ended, keeper
from testbed import Guest, Testbed, section, wait_until

NAME = "web1"


@pytest.fixture(scope="module")
def bed():
    with Testbed() as bed:
        yield bed


@pytest.fixture(scope="module")
def home(bed):
    """[host, other]; web1 has a disk that both see."""
    image = bed.dir / "vda"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o666)
    disk = section("disk vda", file=image, format="raw", cache="none", shared=True)
    bed.a.start(NAME, Guest(), memory="192M", text=disk)
    bed.ask(Guest(), LOADED)
    return [bed.a, bed.b]


@pytest.fixture(autouse=True)
def tidy(bed, home):
    """After each test the guest runs on one host, its connection lives, and the other host is clean."""
    with bed.probe(f"ping,{Guest().ip4}") as probe:
        probe.mark()
        yield
        probe.assert_alive()
    assert home[0].status(NAME)["state"] == "running"
    assert home[1].wait_clean() == []


def migration(home):
    return (home[0].status(NAME) or {}).get("migration") or {}


@contextlib.contextmanager
def moving(home, *options, ssh=False):
    """A migration in the background, once it copies memory."""
    here, there = home
    to = there.ssh if ssh else there.exec_destination()
    mover = here.popen("vmferry", "migrate", NAME, to, "--json", "--progress=none", *options, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: migration(home).get("state") == "perform" or mover.poll() is not None)
        assert mover.poll() is None, mover.communicate()
        yield mover
    finally:
        if mover.poll() is None:  # a test that failed
            here.vmferry("cancel", NAME, check=False)
            mover.communicate()


def test_disks_when_nothing_moves(home):
    block = home[0].status(NAME)["block"]
    disk = block["disks"][0]
    assert disk["id"] == "vda" and disk["reads"] > 0 and disk["read_bytes"] > 0 and disk["failed_reads"] == 0, disk


@pytest.mark.parametrize("transport", ["tcp", "tls", "ssh", "tunnel"])
def test_every_transport(home, transport):
    here, there = home
    with moving(home, f"--transport={transport}", "--bandwidth=2M", ssh=True) as mover:
        assert migration(home)["transport"] == transport
        here.vmferry("set", NAME, "downtime=200", "bandwidth=3M")
        wait_until(lambda: migration(home).get("transferred", 0) > 0)
        seen = migration(home)["transferred"]
        wait_until(lambda: migration(home).get("transferred", 0) > seen)
        assert here.status(NAME)["block"]["disks"][0]["id"] == "vda"
        here.vmferry("pause", NAME)
        assert here.status(NAME)["state"] == "paused" and migration(home)["state"] == "perform"
        here.vmferry("resume", NAME)
        here.vmferry("cancel", NAME)
        result = ended(mover, 1)
    assert (result["status"], result["guest"], result["transport"]) == ("cancelled", "running here", transport)
    assert "graphics" not in result
    assert there.wait_clean() == []


def test_status_does_not_ask(home):
    """While memory moves Status is answered from what is known: also by a QEMU that cannot answer."""
    here, _ = home
    with moving(home, "--transport=tcp", "--bandwidth=4M") as mover:
        wait_until(lambda: (here.status(NAME).get("block") or {}).get("age_ms", 10000) < 1000)
        pid = here.status(NAME)["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            first, second = here.status(NAME), here.status(NAME)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert first["block"]["disks"] == second["block"]["disks"] and second["block"]["age_ms"] >= first["block"]["age_ms"]
        here.vmferry("cancel", NAME)
        ended(mover, 1)


def test_paused_and_cancelled(home):
    """A person's pause outlives the migration that failed."""
    here, _ = home
    with moving(home, "--transport=tcp", "--bandwidth=4M") as mover:
        here.vmferry("pause", NAME)
        here.vmferry("cancel", NAME)
        assert ended(mover, 1)["guest"] == "paused"
    assert (here.status(NAME)["state"], here.status(NAME)["reason"]) == ("paused", "user")
    here.vmferry("resume", NAME)


@pytest.mark.long
def test_throttle(bed, home):
    """A guest that writes too fast: a longer pause up to the limit, then less and less time for it, as far as is allowed."""
    here, _ = home
    bed.ask(Guest(), "dirty 60")
    try:
        with moving(home, "--transport=tcp", "--bandwidth=30M", "--downtime=100", "--throttle=30") as mover:
            wait_until(lambda: migration(home).get("throttle", 0) >= 20)
            now = migration(home)
            assert now["downtime_limit"] == 100 and now["predicted_pause_ms"] > 100 and now["dirty_rate"] > 0, now
            wait_until(lambda: migration(home).get("throttle", 0) == 30)
            here.vmferry("set", NAME, "throttle=off")
            wait_until(lambda: migration(home).get("throttle", 99) <= 1)
            here.vmferry("set", NAME, "downtime=20s")
            result = ended(mover, 0)
    finally:
        bed.ask(Guest(), "stop")
    assert any("slowed down" in warning for warning in result["warnings"]), result
    home.reverse()


def test_no_throttle(home):
    here, _ = home
    with moving(home, "--transport=tcp", "--bandwidth=4M", "--throttle=off") as mover:
        refused = here.vmferry("set", NAME, "throttle=30", check=False)
        assert refused.returncode == 1 and "--throttle=off" in refused.stderr, refused
        here.vmferry("cancel", NAME)
        ended(mover, 1)


def test_deadline_of_a_phase(home):
    """A target's QEMU that stands still: noticed within this migration's own limit."""
    here, there = home
    with moving(home, "--transport=tcp", "--bandwidth=20M", "--deadline=no-progress=2", "--deadline=connect=9") as mover:
        os.kill(there.status(NAME)["pid"], signal.SIGSTOP)
        result = ended(mover, 1)
    assert result["error"]["phase"] == "Perform" and "no progress" in result["error"]["message"], result
    assert "within 2.0 s" in result["error"]["message"] and "--deadline" in result["error"]["hint"]


def test_state_and_reason(bed, home):
    """Both, and since when, are as they were after a keeper's restart; of a VM that is off its history tells."""
    here, there = home

    def now(host=here):
        status = host.status(NAME)
        return status["state"], status["reason"], status["since"]

    def survives(host, state, reason):
        before, pid = now(host), keeper(host)
        assert before[:2] == (state, reason)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: keeper(host) not in (None, pid) and host.vmferry("status", NAME, check=False).returncode == 0)
        wait_until(lambda: now(host)[0] != "starting")
        assert now(host) == before

    survives(here, *now()[:2])
    here.vmferry("pause", NAME)
    survives(here, "paused", "user")
    here.vmferry("resume", NAME)
    survives(here, "running", "unpaused")
    here.migrate(NAME, there, "--transport=tcp")
    home.reverse()
    survives(there, "running", "migrated")


def events(host, vm):
    return [json.loads(line)["event"] for line in host.vmferry("log", vm, "--json").stdout.splitlines()]


def test_reason_of_an_end(bed):
    """Without a keeper: how it ended, and what led there."""
    small(bed.a, "off", 9)
    ends = {"destroyed": lambda: bed.a.vmferry("kill", "off"),
            "crashed": lambda: os.kill(bed.a.status("off")["pid"], signal.SIGKILL)}
    for reason, end in ends.items():
        bed.a.vmferry("start", "off")
        assert (bed.a.status("off")["state"], bed.a.status("off")["reason"]) == ("running", "booted")
        end()
        wait_until(lambda: bed.a.status("off")["state"] == "off")
        assert bed.a.status("off")["reason"] == reason and bed.a.status("off")["since"] > 0
        assert events(bed.a, "off")[-2:] == ["started", reason]
    row = next(vm for vm in bed.a.vmferry_json("list")["vms"] if vm["name"] == "off")
    assert (row["state"], row["reason"]) == ("off", "crashed")


def test_paused_and_not_taken(bed):
    """A paused guest that QEMU had handed over and nobody took is paused still, and can be resumed; then it moves again."""
    small(bed.a, "still", 11)
    bed.a.vmferry("start", "still")
    bed.a.vmferry("pause", "still")
    target = raw_target(bed.a, "takes-not", TAKES)
    for words in ("did not take the guest", "QEMU will not migrate"):
        result = bed.a.migrate("still", target, "--transport=tunnel", check=False)
        assert words in result["error"]["message"] and result["guest"] == "paused", result
        assert bed.a.status("still")["state"] == "paused"
    assert "vmferry resume" in result["error"]["hint"]
    bed.a.vmferry("resume", "still")
    assert bed.a.status("still")["state"] == "running"
    bed.a.migrate("still", bed.b, "--transport=tcp")
    assert bed.b.status("still")["state"] == "running"
    bed.b.vmferry("kill", "still")


def test_graphics_and_words_of_qemu(bed):
    """The result says where the graphics are on the target; and what QEMU says does not grow without end."""
    small(bed.a, "screen", 10, "graphics vnc { listen = \"127.0.0.1\" }\n")
    bed.a.vmferry("start", "screen")
    result = bed.a.migrate("screen", bed.b, "--transport=tcp")
    graphics = result["graphics"]
    assert (graphics["type"], graphics["host"], graphics["listen"]) == ("vnc", "b", "127.0.0.1"), graphics
    assert f"127.0.0.1:{graphics['port']}" in bed.b.run("ss", "-Hltn").stdout
    words = bed.b.runtime / "screen" / "qemu.1" / "stderr"
    with words.open("a") as f:
        f.write("x" * 300000 + "the end\n")
    wait_until(lambda: words.stat().st_size < 10000)
    assert words.read_text().endswith("xthe end\n")
    bed.b.vmferry("kill", "screen")
