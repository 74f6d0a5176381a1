# SPDX-License-Identifier: GPL-2.0-or-later
"""What a keeper leaves in the runtime directory for the one that comes after it, in every version there has been.

golden/RECORD.N is what version N of a record looks like. What today's keeper writes must have exactly the members of the
newest one: who adds a member adds a file, and the older ones are read for ever.
"""

import json
import os
import pathlib
import re
import signal
import subprocess

import pytest

from stays import small
from testbed import ACCEL, Testbed, build_option, qemu, wait_until

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAME = "kept"


def versions(record):
    return sorted(GOLDEN.glob(f"{record}.*"), key=lambda path: int(path.suffix[1:]))


def golden(path, **words):
    text = path.read_text()
    for key, value in ({"ACCEL": ACCEL, "BINARY": qemu()} | words).items():
        text = text.replace(f"@{key}@", str(value))
    assert "@" not in text
    return text


def members(text):
    """Of a JSON object, or the keys of a definition, those of sections too."""
    return set(json.loads(text)) if text.startswith("{") else set(re.findall(r"^\s*([a-z-]+) ", text, re.M))


@pytest.fixture(scope="module")
def bed():
    with Testbed(sshd=False) as bed:
        small(bed.a, NAME, 5)
        yield bed


@pytest.fixture
def home(bed):
    """A host with a VM that runs."""
    if not bed.a.status(NAME).get("pid"):
        bed.a.vmferry("start", NAME)
    return bed.a


def folder(home):
    return home.runtime / NAME


def generation(home):
    return json.loads((folder(home) / "state").read_text())["generation"]


def next_keeper(home):
    home.vmferry("restart-keeper", NAME)


@pytest.mark.parametrize("path", versions("state"), ids=lambda path: path.name)
def test_state(home, path):
    pid = home.status(NAME)["pid"]
    (folder(home) / "state").write_text(golden(path, GENERATION=generation(home)))
    next_keeper(home)
    after = home.status(NAME)
    assert (after["pid"], after["state"], after["reason"], after["since"]) == (pid, "running", "unpaused", 1700000000)


@pytest.mark.parametrize("path", versions("definition"), ids=lambda path: path.name)
def test_definition(home, path):
    """The QEMU that runs is another one's by that; what counts is that it is read as it says: all versions say the same."""
    text = golden(path)
    before = (folder(home) / "definition").read_text()
    (folder(home) / "definition").write_text(text)
    next_keeper(home)
    found = home.vmferry_json("show", NAME)["text"]
    assert found == golden(versions("definition")[-1])
    (folder(home) / "definition").write_text(before)
    next_keeper(home)
    assert home.vmferry_json("show", NAME)["text"] == before


@pytest.mark.parametrize("path", versions("note-source"), ids=lambda path: path.name)
def test_source_note(home, path):
    """A migration from here was under way: not committed, so the guest stays."""
    pid = home.status(NAME)["pid"]
    (folder(home) / "move").write_text(golden(path))
    next_keeper(home)
    wait_until(lambda: not (folder(home) / "move").exists())
    after = home.status(NAME)
    assert (after["pid"], after["state"]) == (pid, "running")
    assert after["last_result"]["id"] == "0123456789abcdef" * 2 and "restarted" in after["last_result"]["error"]["message"]


@pytest.mark.parametrize("path", versions("note-target"), ids=lambda path: path.name)
def test_target_note(home, path):
    """A migration to here was not committed: this QEMU never had the guest, and is killed."""
    pid = home.status(NAME)["pid"]
    (folder(home) / "move").write_text(golden(path))
    home.vmferry("restart-keeper", NAME, check=False)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert home.wait_clean(NAME) == []


def test_members_of_state_and_definition(home):
    for record in ("state", "definition"):
        now = (folder(home) / record).read_text()
        assert members(now) == members(golden(versions(record)[-1], GENERATION=1)), f"a new version of {record}?"


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("path", versions("note-upgrade"), ids=lambda path: path.name)
def test_upgrade_note(home, path):
    """An upgrade was under way, and both QEMUs are there; the record names the new one: that has the guest in the end."""
    before = home.status(NAME)
    (home.runtime / "fault").write_text("COMMIT_NEW:after:reboot\n")
    upgrade = home.popen("vmferry", "upgrade", NAME)
    wait_until(lambda: not (home.runtime / "fault").exists())
    note = folder(home) / "move"
    now = note.read_text()
    assert members(now) == members(golden(versions("note-upgrade")[-1], OLD=1, FRESH=2)), "a new version of note-upgrade?"
    numbers = json.loads(now)
    note.write_text(golden(path, OLD=numbers["old"], FRESH=numbers["fresh"]))
    stopped = json.loads((folder(home) / "state").read_text())["generation"]
    assert stopped == numbers["fresh"]
    os.kill(stopped_keeper(home), signal.SIGKILL)
    upgrade.wait()
    wait_until(lambda: not note.exists() and home.status(NAME))
    after = home.status(NAME)
    assert after["state"] == "running" and after["pid"] != before["pid"] and not os.path.exists(f"/proc/{before['pid']}")


def stopped_keeper(home):
    """Who has the VM's lock."""
    inode = (folder(home) / "lock").stat().st_ino
    return next(int(line.split()[4]) for line in open("/proc/locks") if f":{inode} " in line and "FLOCK" in line)


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("side, action", [("source", "START_MIGRATE"), ("target", "PREPARE_REPLY")])
def test_members_of_notes(bed, home, side, action):
    """A migration that is held in the middle, and then comes to nothing."""
    pid = home.status(NAME)["pid"]
    host = {"source": bed.a, "target": bed.b}[side]
    (host.runtime / "fault").write_text(f"{action}:after:reboot\n")
    mover = home.popen("vmferry", "migrate", NAME, bed.b.exec_destination(), "--transport=tunnel", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: not (host.runtime / "fault").exists())
    now = (folder(host) / "move").read_text()
    os.kill(stopped_keeper(host), signal.SIGKILL)
    mover.wait()
    assert members(now) <= members(golden(versions(f"note-{side}")[-1])), f"a new version of note-{side}?"  # what is not known is left out
    wait_until(lambda: not (folder(home) / "move").exists() and not home.status(NAME).get("migration"))
    assert (home.status(NAME)["pid"], home.status(NAME)["state"]) == (pid, "running")
    assert bed.b.wait_clean() == []


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
def test_stopped_for_a_migration(bed, home):
    """--no-live stopped the guest; the keeper dies, and the next one knows that it has to go on."""
    pid = home.status(NAME)["pid"]
    (home.runtime / "fault").write_text("CONTINUE:before:self\n")
    home.vmferry("migrate", NAME, bed.b.exec_destination(), "--transport=tunnel", "--no-live", check=False)
    assert not (home.runtime / "fault").exists()
    wait_until(lambda: not (folder(home) / "move").exists())
    wait_until(lambda: home.status(NAME)["state"] == "running")
    assert home.status(NAME)["pid"] == pid
    assert bed.b.wait_clean() == []


def test_a_persons_pause_outlives_the_keeper(bed, home):
    """--no-live stopped the guest, and then a person did: the next keeper leaves it so."""
    pid = home.status(NAME)["pid"]
    mover = home.popen("vmferry", "migrate", NAME, bed.b.exec_destination(), "--transport=tunnel", "--no-live", "--bandwidth=1000",
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: home.status(NAME)["reason"] == "migration")
    home.vmferry("pause", NAME)
    os.kill(stopped_keeper(home), signal.SIGKILL)
    mover.wait()
    wait_until(lambda: not (folder(home) / "move").exists() and not home.status(NAME).get("migration"))
    assert (home.status(NAME)["pid"], home.status(NAME)["state"]) == (pid, "paused")
    home.vmferry("resume", NAME)
    assert bed.b.wait_clean() == []
