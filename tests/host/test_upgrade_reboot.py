# SPDX-License-Identifier: GPL-2.0-or-later
"""The power fails in the middle of an upgrade: the VM is off and can be started, as if nobody had tried. Needs a build with -Dfaults=true."""

import os
import shutil
import subprocess

import pytest

from faults import Bare, Injector, everything, kill, wait_beats
from netns import command
from testbed import Testbed, build_option, qemu, section

OLD = "/usr/bin/qemu-system-x86_64"
MACHINE = "pc-q35-7.2"  # what both know

pytestmark = [
    pytest.mark.skipif(not os.path.exists(OLD), reason="needs Debian's QEMU 7.2 beside 10.0"),
    pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true"),
]

FORWARD = "NOTE_UPGRADE START_NEW SET_UP_BOTH START_UPGRADE COMMIT_NEW KILL_OLD CONT_NEW ANNOUNCE END".split()
BACK = "KILL_NEW CLEAR_NEW SETTLE CONT_BACK END".split()
WAYS = {"in-place": "shared", "copy": "private"}


def points():
    """On the way there, and back from the last moment."""
    for way in WAYS:
        for when in ("before", "after"):
            yield from (f"{way}:forward:{action}:{when}" for action in FORWARD)
            yield from (f"{way}:back:{action}:{when}" for action in BACK)


SAMPLE = ["in-place:forward:COMMIT_NEW:after", "copy:forward:START_UPGRADE:after"]


class Power:
    """A VM on a host whose power fails."""

    def __init__(self, bed):
        self.bed, self.host, self.guest = bed, bed.a, Bare()
        self.host.write_conf("deadlines { connect = 60 prepare = 60 link = 60 }\n")
        self.disk = bed.dir / "disk.qcow2"
        command("qemu-img", "create", "-q", "-f", "qcow2", str(self.disk), "8M")
        self.disk.chmod(0o666)
        self.injector = Injector(bed.hosts)

    def start(self, memory_backing):
        disk = section("disk vda", file=str(self.disk), format="qcow2", cache="none", bus="virtio", shared=True)
        self.host.define("web1", self.guest, disk, memory="16M", machine=MACHINE, binary=qemu(), memory_backing=memory_backing)
        self.host.vmferry("start", "web1")
        wait_beats(self.host)

    def fail(self):
        """Keepers before QEMUs, so that nobody is told of anything; a runtime directory does not outlive the host."""
        kill(everything(self.host))
        for path in self.host.runtime.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self):
        self.injector.close()


@pytest.fixture(scope="module")
def power():
    with Testbed(hosts=("a",), sshd=False) as bed:
        power = Power(bed)
        yield power
        power.close()


@pytest.fixture
def vm(power):
    """Nothing of it is left for the next test, however this one ends."""
    yield power
    power.injector.no_more()
    power.host.vmferry("kill", "web1", check=False)
    assert power.host.wait_clean() == []


@pytest.mark.parametrize("point", [p if p in SAMPLE else pytest.param(p, marks=pytest.mark.long) for p in points()])
def test_reboot(vm, point):
    way, road, action, when = point.split(":")
    power, host = vm, vm.host
    power.start(WAYS[way])
    kept = sorted(p.name for p in (host.state / "web1").iterdir())
    plan = {(host, action, when): power.fail}
    if road == "back":
        plan[host, "COMMIT_NEW", "before"] = lambda: "cancel"
    power.injector.begin(plan)
    # A leak check at its end is a process of its own: killed with the rest, the client would wait for it for ever.
    quiet = {"env": {"ASAN_OPTIONS": "detect_leaks=0"}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    mover = host.popen("vmferry", "upgrade", "web1", "--binary", OLD, f"--way={way}", **quiet)
    assert power.injector.wait(lambda: (host, action, when) in power.injector.struck), "the point was never reached"
    mover.wait()

    assert host.leftovers() == []
    assert host.status("web1")["state"] == "off"
    assert sorted(p.name for p in (host.state / "web1").iterdir()) == kept
    checked = subprocess.run(["qemu-img", "check", "-q", power.disk], capture_output=True, text=True)
    assert checked.returncode in (0, 3), checked.stderr  # 3: clusters that the killed one had just taken are unused
    host.vmferry("start", "web1")
    wait_beats(host)
    shown = host.status("web1")
    assert shown["state"] == "running" and shown["qemu_version"].startswith("10.")
    done = host.vmferry_json("upgrade", "web1", "--binary", OLD, f"--way={way}")
    assert done["status"] == "completed" and host.status("web1")["qemu_version"].startswith("7.")
    wait_beats(host)
