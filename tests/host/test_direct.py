# SPDX-License-Identifier: GPL-2.0-or-later
"""Client-managed migration: two hosts that cannot reach each other, and a third machine that reaches both by ssh."""

import json
import os
import select
import signal
import subprocess

import pytest

from test_running import LOADED, ended, keeper
from testbed import BUILD, LIMIT, Guest, Testbed, build_option, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (BUILD / "src/cli/vmferry").exists(), reason="vmferry is not built"),
]
STREAMS = ["ping,10.0.0.5", "ping,fd00::5", "hold,10.0.0.5,count=30", "bulk,10.0.0.5,pace=2000000"]
NAME = "web1"


@pytest.fixture(scope="module")
def bed():
    with Testbed() as bed:
        for host in bed.hosts:
            host.write_conf("deadlines { connect = 10 link = 4 finish = 4 }\n")
        bed.separate()
        yield bed


class Home:
    """Where web1 is, and where it may go."""

    def __init__(self, bed):
        self.bed, self.here, self.there = bed, bed.a, bed.b

    def swap(self):
        self.here, self.there = self.there, self.here

    def words(self, verb="migrate", *options):
        return ["vmferry", "-H", self.here.ssh, verb, NAME, self.there.ssh, "--direct", "--json", "--progress=none", *options]

    def start(self, *options):
        """In the background, from the third machine."""
        return self.bed.operator.popen(*self.words("migrate", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def slow(self, *options):
        mover = self.start("--bandwidth=4M", *options)
        wait_until(lambda: (self.status() or {}).get("state") == "perform" or mover.poll() is not None)
        assert mover.poll() is None, mover.communicate()
        return mover

    def status(self):
        return (self.here.status(NAME) or {}).get("migration")

    def states(self):
        """Of the guest; None: it is not there."""
        found = [(host.status(NAME) or {}).get("state") for host in (self.here, self.there)]
        return [state if state in ("running", "paused", "in-doubt", "incoming", "starting") else None for state in found]


@pytest.fixture(scope="module")
def home(bed):
    bed.a.start(NAME, Guest(), memory="192M")
    bed.ask(Guest(), LOADED)
    return Home(bed)


@pytest.fixture
def probe(bed, home):
    with bed.probe(*STREAMS) as probe:
        probe.mark()
        yield probe
        probe.assert_alive()
    assert home.states() == ["running", None]
    assert home.there.wait_clean() == []
    assert [line for line in bed.operator.processes().values() if line.startswith("ssh")] == []


def test_hosts_do_not_reach_each_other(home):
    done = home.here.run("ssh", "-F", home.here.ssh_config, "-oConnectTimeout=1", home.there.name, "true", check=False)
    assert done.returncode == 255 and "timed out" in done.stderr, done


def test_there_and_back(bed, home, probe):
    """Control and memory through the third machine; what no host could do by itself."""
    for _ in range(2):
        result = json.loads(bed.operator.run(*home.words()).stdout)
        assert result["status"] == "completed" and result["transport"] == "tunnel" and result["guest"] == "running there", result
        assert result["conntrack"]["applied"] >= 30 and result["conntrack"]["lost"] == 0
        assert home.here.wait_clean() == []
        home.swap()


def test_data_goes_directly_where_it_can(bed, home, probe):
    """Only ssh is closed between the hosts: the client's way is for control alone."""
    for host in bed.hosts:
        host.run("nft", "insert rule inet apart in tcp dport 49152-49215 accept")
        host.run("nft", "insert rule inet apart in tcp sport 49152-49215 accept")
    try:
        result = json.loads(bed.operator.run(*home.words()).stdout)
    finally:
        for host in bed.hosts:
            host.run("nft", "delete table inet apart")
        bed.separate()
    assert (result["status"], result["transport"]) == ("completed", "tls"), result
    home.swap()


@pytest.mark.long
def test_keeper_is_killed(bed, home, probe):
    """It comes back and gives up the migration; the client sees it through the same door."""
    mover = home.slow()
    os.kill(keeper(home.here), signal.SIGKILL)
    out, err = mover.communicate(timeout=LIMIT)
    assert mover.returncode in (1, 3), out + err
    wait_until(lambda: home.status() is None and home.states() == ["running", None])


def test_check(bed, home, probe):
    found = json.loads(bed.operator.run(*home.words("check")).stdout)
    assert found["ok"] and found["transport"] == "tunnel" and found["target"] == home.there.name, found


def test_client_beside_the_source(bed, home, probe):
    """The keeper is here: no ssh to it, its streams are passed as fds. The client reaches the target in its own way."""
    result = home.here.vmferry_json("migrate", NAME, home.there.exec_destination(), "--direct")
    assert result["status"] == "completed" and result["transport"] == "tunnel", result
    home.swap()


def test_cancel(bed, home, probe):
    mover = home.slow()
    home.here.vmferry("cancel", NAME)
    result = ended(mover, 1)
    assert result["status"] == "cancelled" and result["guest"] == "running here"


@pytest.mark.long
def test_interrupt_cancels(bed, home, probe):
    mover = home.slow()
    mover.send_signal(signal.SIGINT)
    assert ended(mover, 1)["status"] == "cancelled"


@pytest.mark.long
def test_tuned_while_it_runs(bed, home, probe):
    mover = home.slow()
    home.here.vmferry("set", NAME, "bandwidth=1G")
    assert ended(mover, 0)["status"] == "completed"
    home.swap()


def test_client_leaves(bed, home, probe):
    """The streams it has made go on without it."""
    mover = home.slow()
    mover.send_signal(signal.SIGHUP)
    out, err = mover.communicate(timeout=LIMIT)
    assert mover.returncode == 3 and "goes on" in err
    home.here.vmferry("set", NAME, "bandwidth=1G")
    wait_until(lambda: home.states() == [None, "running"])
    home.swap()


def streams(bed):
    """The third machine's ends of the streams: ssh processes, those to the target first."""
    return [pid for pid, line in bed.operator.processes().items() if line.startswith("ssh")]


def test_streams_are_cut(bed, home, probe):
    """Without the third machine there is no link: as any cut link before the commit."""
    mover = home.slow()
    for pid in streams(bed):
        os.kill(pid, signal.SIGKILL)
    out, err = mover.communicate(timeout=LIMIT)
    assert mover.returncode in (1, 3), out + err
    wait_until(lambda: home.status() is None and home.states()[0] == "running")


def test_cancel_when_the_relay_stands_still(bed, home, probe):
    """Nobody takes what QEMU sends, nobody closes the stream: a cancel is answered all the same."""
    mover = home.slow("--deadline=link=60")  # the link is as silent as the data
    stuck = streams(bed)
    for pid in stuck:
        os.kill(pid, signal.SIGSTOP)
    try:
        home.here.vmferry("set", NAME, "bandwidth=1G")
        seen = None
        while seen != (seen := home.status()["transferred"]):  # twice the same: QEMU is stuck; figures come every 0.5 s
            select.select([], [], [], 1.2)
        home.here.vmferry("cancel", NAME, timeout=20)
        assert home.states()[0] == "running" and home.status() is None
    finally:
        for pid in stuck:
            os.kill(pid, signal.SIGCONT)
    assert ended(mover, 1)["status"] == "cancelled"


def test_wrong_target(bed, home, probe):
    words = home.words()
    words[words.index(home.there.ssh)] = "ssh://10.99.0.77:1"
    done = bed.operator.run(*words, check=False)
    assert done.returncode == 1 and json.loads(done.stdout)["error"]["phase"] == "Begin", done
    assert "ssh" in done.stderr and "no answer" not in done.stderr


def test_wrong_source(bed, home):
    done = bed.operator.run("vmferry", "-H", "ssh://10.99.0.77:1", "migrate", NAME, home.there.ssh, "--direct", check=False)
    assert done.returncode == 1 and "ssh ended with status 255" in done.stderr, done
    done = bed.operator.run("vmferry", "-H", home.here.ssh, "migrate", "nobody", home.there.ssh, "--direct", check=False)
    assert done.returncode == 1 and "nobody" in done.stderr, done


@pytest.mark.long
def test_offline(bed, home):
    home.here.define("cold", Guest(7))
    done = bed.operator.run("vmferry", "-H", home.here.ssh, "migrate", "cold", home.there.ssh, "--direct", "--json")
    assert json.loads(done.stdout)["status"] == "completed"
    assert home.here.vmferry("start", "cold", check=False).returncode == 1


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("point", [
    pytest.param("OPEN_DATA:before", marks=pytest.mark.long), "LAST_DELTA:before",
    pytest.param("JOURNAL_COMMIT:after", marks=pytest.mark.long), "SEND_FINISH:after",
])
def test_client_machine_is_lost(bed, home, probe, point):
    """All that the client has begun is killed at once; the link is cut with it. Then another client settles it."""
    (home.here.runtime / "fault").write_text(f"{point}:link\n")
    mover = home.start()
    out, err = mover.communicate(timeout=LIMIT)
    assert not (home.here.runtime / "fault").exists()
    if point.split(":")[0] in ("OPEN_DATA", "LAST_DELTA"):
        assert json.loads(out)["guest"] == "running here"
        return
    if home.states()[0] == "in-doubt":
        done = bed.operator.run(*home.words("recover"), check=False)
        assert json.loads(done.stdout)["status"] in ("completed", "failed"), done
    wait_until(lambda: sorted(home.states(), key=str) == [None, "running"])
    if home.states()[0] is None:
        home.swap()


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
def test_in_doubt_until_a_client_comes(bed, home, probe):
    """The client is gone for good and the link with it, right after the commit: in doubt, until `recover --direct`."""
    mover = home.slow()
    mover.send_signal(signal.SIGSTOP)  # from now on it makes no streams
    (home.here.runtime / "fault").write_text("SEND_FINISH:before:link\n")
    home.here.vmferry("set", NAME, "bandwidth=1G")
    wait_until(lambda: home.states()[0] == "in-doubt")
    for pid in streams(bed):
        os.kill(pid, signal.SIGKILL)
    mover.kill()
    mover.communicate()
    assert home.here.vmferry_json("recover", NAME)["state"] == "in-doubt"
    result = json.loads(bed.operator.run(*home.words("recover"), check=False).stdout)
    assert result["status"] == "failed" and "did not take the guest" in result["error"]["message"], result
    wait_until(lambda: home.states() == ["running", None])
