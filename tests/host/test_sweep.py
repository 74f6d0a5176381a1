# SPDX-License-Identifier: GPL-2.0-or-later
"""Every fault at every action: kills of either keeper, either QEMU, what carries the streams and the client; links that
are cut, that stall, data that stalls; reboots of either host; before and after each of the engine's actions. Client-managed
mode from a third machine: its client, its streams to either host, and all of it at once.

After each: exactly one guest runs, by itself; memory intact (the guest checks it all the time and counts on), the disk
image without an error, nothing left on either host. Where the fault took the guest itself away, exactly one host may
start it again. Needs a build with -Dfaults=true. A sample; all of them with make check-long.
"""

import collections
import pathlib

import pytest

from faults import Pair, come_up, go_down, is_down, keepers, kill, qemus, streams, transport
from testbed import Testbed, build_option, wait_file

pytestmark = pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")

SOURCE = """CONNECT HELLO PROVE SEND_PREPARE OPEN_DATA PREALLOCATE START_MIGRATE LAST_DELTA CONTINUE JOURNAL_COMMIT RELEASE_LEASE
SEND_FINISH JOURNAL_GONE KILL_QEMU FLUSH NOTE FORGET END""".split()
TARGET = "PREALLOCATE START_QEMU PREPARE_REPLY ARM_GATE ACQUIRE_LEASE JOURNAL_COMMITTED CONT SAY_RUNNING ANNOUNCE".split()
MOMENTS = [(side, action, when) for side, actions in (("source", SOURCE), ("target", TARGET)) for action in actions
           for when in ("before", "after")]


def stage(side, action, when):
    """Who may run the guest then: the source; it has offered; the target is asked; the target decides; it has taken."""
    if (action, when) == ("SEND_FINISH", "after"):
        return "asked"
    if side == "source":
        n = SOURCE.index(action) + (when == "after")
        return "source" if n <= SOURCE.index("JOURNAL_COMMIT") else "offered" if n <= SOURCE.index("SEND_FINISH") else "taken"
    n = TARGET.index(action) + (when == "after")
    if n <= TARGET.index("PREPARE_REPLY") + 1:
        return "source"
    return "deciding" if n <= TARGET.index("JOURNAL_COMMITTED") else "taken"


# What a victim does to a Pair, and in which stages the guest may be off, or started anew, afterwards.
Victim = collections.namedtuple("Victim", "strike off anew", defaults=((), ()))


def cut(pair):
    pair.there.cut()


VICTIMS = {
    "source-keeper": Victim(lambda pair: kill(keepers(pair.here))),
    "target-keeper": Victim(lambda pair: kill(keepers(pair.there))),
    "source-qemu": Victim(lambda pair: kill(qemus(pair.here)), off=("source",)),
    "target-qemu": Victim(lambda pair: kill(qemus(pair.there)), off=("asked", "taken")),
    "transport": Victim(lambda pair: kill(transport(pair.here, pair.there))),
    "client": Victim(lambda pair: kill([pair.client.pid])),
    "stall": Victim(lambda pair: pair.stop(transport(pair.here, pair.there))),
    "network": Victim(cut),
    "source-reboot": Victim(lambda pair: go_down(pair.here), anew=("source", "offered", "asked", "deciding")),
    "target-reboot": Victim(lambda pair: go_down(pair.there), anew=("asked", "taken")),
    "link": Victim(lambda pair: "link"),
    "cancel": Victim(lambda pair: "cancel"),
    "powerdown": Victim(lambda pair: "powerdown", off=("source", "offered", "asked", "deciding", "taken")),
}

# Client-managed mode: the client, its streams' ends at either host, its whole machine.
DIRECT_VICTIMS = {
    "near": Victim(lambda pair: kill(streams(pair.desk, "vmferry control"))),
    "far": Victim(lambda pair: kill(streams(pair.desk, "vmferry receive"))),
    "desk": Victim(lambda pair: kill(pair.desk.processes() | {pair.client.pid: "vmferry"})),
}

ALWAYS = ("source", "offered", "asked", "deciding", "taken")


def points(moments, victims):
    for side, action, when in moments:
        for victim in victims:
            if victim in ("cancel", "powerdown") and (side != "source" or action in SOURCE[13:]):
                continue
            yield f"{side}:{action}:{when}:{victim}"


# Over tcp, all of it.
TCP = list(points(MOMENTS, VICTIMS))
VICTIMS |= DIRECT_VICTIMS

# What else is different where it is different: the data's way, the pause, the run state.
WAYS = {"tls": ("tls",), "ssh": ("ssh",), "tunnel": ("tunnel",), "no-live": ("tcp", "--no-live")}
WAY_MOMENTS = [("source", action, "after") for action in "OPEN_DATA START_MIGRATE LAST_DELTA CONTINUE SEND_FINISH".split()] + [
    ("target", action, when) for action, when in (("PREPARE_REPLY", "after"), ("ARM_GATE", "before"), ("CONT", "after"))]
WAY_VICTIMS = ["source-keeper", "target-keeper", "transport", "stall", "network", "source-reboot", "target-reboot", "cancel"]
OTHER_WAYS = [f"{way}:{p}" for way in WAYS for p in points(WAY_MOMENTS, WAY_VICTIMS)]

# Through a client: it is lost at each action, alone and with all that it has begun.
DIRECT = [f"direct:{p}" for p in [*points(MOMENTS, ["client", "desk"]), *points(WAY_MOMENTS, ["near", "far", *WAY_VICTIMS])]] + [
    f"beside:{p}" for p in points(WAY_MOMENTS, ["client", "transport", "source-keeper", "target-keeper", "source-reboot"])]

# Off the straight way: what leads there, and the actions one meets then.
ROADS = {
    "back": ("source:CONTINUE:after:cancel", {"source": "SETTLE SEND_ABORT END", "target": "JOURNAL_ABORTED KILL_QEMU RELEASE_LEASE SAY_NEVER END"}),
    "never": ("target:ARM_GATE:after:target-qemu", {"source": "ACQUIRE_LEASE JOURNAL_OWNER RESUME END",
                                                     "target": "JOURNAL_ABORTED RELEASE_LEASE SAY_NEVER END"}),
    "doubt": ("source:SEND_FINISH:after:link", {"source": "RECONNECT SEND_OUTCOME"}),
    "refused": ("source:SEND_FINISH:before:link", {"source": "RECONNECT SEND_OUTCOME ACQUIRE_LEASE JOURNAL_OWNER RESUME"}),
}
ROAD_VICTIMS = ["source-keeper", "target-keeper", "source-qemu", "target-qemu", "transport", "source-reboot", "target-reboot"]
SECOND = [f"{road}:{p}" for road, (_, sides) in ROADS.items() for side, actions in sides.items()
          for p in points([(side, action, when) for action in actions.split() for when in ("before", "after")], ROAD_VICTIMS)]

# A VM that is off: its definition and the right to start it move.
OFFLINE = list(points([("source", action, "after") for action in "SEND_PREPARE JOURNAL_COMMIT SEND_FINISH JOURNAL_GONE NOTE".split()] + [
    ("target", action, "after") for action in "START_QEMU ARM_GATE JOURNAL_COMMITTED SAY_RUNNING".split()],
    ["source-keeper", "target-keeper", "transport", "source-reboot", "target-reboot"]))


def sampled(points, every):
    return [p if i % every == 0 else pytest.param(p, marks=pytest.mark.long) for i, p in enumerate(points)]


class Pairs:
    """One pair for many points; a new one after a point that has failed."""

    def __init__(self):
        self.pair = None

    @property
    def bed(self):
        return self.pair and self.pair.bed

    def get(self, transport):
        if not self.pair or self.pair.failed or self.pair.transport != transport:
            self.close()
            self.pair = Pair(Testbed(), transport)
            self.pair.boot()
        return self.pair

    def close(self):
        if self.pair:
            self.pair.close()
            self.pair.bed.close()
        self.pair = None


def scribble(qemu):
    """Write a word into each page of the guest's memory that it looks after."""
    maps = [line.split() for line in pathlib.Path(f"/proc/{qemu}/maps").read_text().splitlines()]
    spans = [[int(a, 16) for a in words[0].split("-")] for words in maps]
    base = next(begin for begin, end in spans if end - begin == 16 << 20)
    with open(f"/proc/{qemu}/mem", "r+b", buffering=0) as memory:
        for page in range(0x400000, 0x800000, 4096):
            memory.seek(base + page)
            memory.write(b"\xde\xad\xbe\xef")


@pytest.fixture(scope="module")
def pairs():
    pairs = Pairs()
    yield pairs
    pairs.close()


def act(pair, point):
    """A point's place in a plan, and what happens there."""
    side, action, when, victim = point.split(":")
    host = pair.here if side == "source" else pair.there
    return (host, action, when), lambda: VICTIMS[victim].strike(pair)


def undo(pair, *vms):
    """What a fault took away for a while comes back: power, network, stopped processes. @vms: what a boot starts."""
    for host in pair.bed.hosts:
        if is_down(host):
            pair.rebooted.add(host)
            come_up(host, *vms)
        host.heal()
    pair.go_on()


# On a machine that is slow for a while an attempt may end by one of the program's limits before its fault.
ATTEMPTS = 5


def cut_short(pair):
    """The client has ended, and says that it was a limit: the link's, the watchdog's over QEMU's data port, a deadline."""
    return pair.ended() and any(word in "".join(pair.output) for word in ("silent", " within "))


def strike(pair, points, *args, begin=Pair.note, **kwargs):
    """A migration with these points on its way. One that a limit has ended before must end right as well, and is made again."""
    for _ in range(ATTEMPTS):
        begin(pair)
        if attempt(pair, points, *args, **kwargs):
            return
    raise AssertionError("the point was never reached")


def attempt(pair, points, options=(), off=(), anew=(), end=Pair.assert_one, boots=("web1",)):
    """@off, @anew: stages of the last point where that may be the end. Return: whether all points were reached."""
    side, action, when, victim = points[-1].split(":")
    then = stage(side, action, when) if action in (SOURCE if side == "source" else TARGET) else "elsewhere"
    injector, pair.failed, pair.rebooted = pair.injector, True, set()
    injector.begin(act(pair, point) for point in points)
    pair.start_migration(*options)
    try:
        # The client may end before the other host has.
        injector.wait(lambda: len(injector.struck) == len(points) or (cut_short(pair) and not injector.busy))
        injector.no_more()
        # A client elsewhere hears nothing of a host without power before that is back.
        injector.wait(lambda: pair.ended() or pair.in_doubt() or is_down(pair.here))
        injector.wait(lambda: not injector.busy)
        undo(pair, *boots)
        pair.wait_client()
        reached, last = len(injector.struck) == len(points), act(pair, points[-1])[0] in injector.struck
        assert reached or cut_short(pair), "the point was never reached"
        end(pair, lost_allowed=last and then in off, boot_allowed=last and then in anew)
        pair.check_disk()
        pair.failed = False
        return reached
    except AssertionError as e:
        raise AssertionError(f"{e}\n{pair.output}\n" + " ".join(f"{h.name}:{a}:{w}" for h, a, w in injector.seen)) from e
    finally:
        undo(pair, *boots)
        injector.begin({})


@pytest.mark.parametrize("point", sampled(TCP, 43))
def test_tcp(pairs, point):
    pair, victim = pairs.get("tcp"), VICTIMS[point.split(":")[-1]]
    strike(pair, [point], off=victim.off, anew=victim.anew)


@pytest.mark.parametrize("point", sampled(OTHER_WAYS, 43))
def test_other_ways(pairs, point):
    way, point = point.split(":", 1)
    pair, victim = pairs.get(WAYS[way][0]), VICTIMS[point.split(":")[-1]]
    strike(pair, [point], WAYS[way][1:], off=victim.off, anew=victim.anew)


@pytest.mark.parametrize("point", sampled(DIRECT, 43))
def test_direct(pairs, point):
    way, point = point.split(":", 1)
    pair, victim = pairs.get(way), VICTIMS[point.split(":")[-1]]
    strike(pair, [point], off=victim.off, anew=victim.anew)


@pytest.mark.parametrize("point", sampled(SECOND, 43))
def test_second(pairs, point):
    road, point = point.split(":", 1)
    pair, victim = pairs.get("tcp"), point.split(":")[-1]
    grave = victim.endswith(("qemu", "reboot"))
    strike(pair, [ROADS[road][0], point], off=(*ALWAYS, "elsewhere") if grave else (), anew=(*ALWAYS, "elsewhere") if grave else ())


def off_here_or_there(pair, **_):
    """It is still off, and exactly one host may start it."""
    assert pair.settle() == []
    pair.start_where_it_may()


@pytest.mark.parametrize("point", sampled(OFFLINE, 23))
def test_offline(pairs, point):
    pair = pairs.get("tcp")
    strike(pair, [point], begin=lambda pair: pair.here.vmferry("kill", "web1"), end=off_here_or_there, boots=())


def test_count():
    """The number of points, for people; none is there twice."""
    every = [TCP, OTHER_WAYS, DIRECT, SECOND, OFFLINE]
    n = sum(map(len, every))
    print(f"fault points: {n}")
    assert n == sum(len(set(some)) for some in every) >= 300


def test_the_guest_notices(pairs):
    """The guest of these tests does see when its memory is not what it wrote."""
    pair = pairs.get("tcp")
    pair.failed = True
    scribble(qemus(pair.here)[0])
    wait_file(pair.here.runtime / "web1" / "console.log", "BAD memory 4")
    with pytest.raises(AssertionError):
        pair.note()
