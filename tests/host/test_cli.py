# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line against a keeper with canned answers (fake-keeper.c). No QEMU, no root.

VMFERRY_BUILD: build directory (default: build).
"""
import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

LIMIT = 60  # seconds; a wait that takes so long has failed
HERE = Path(__file__).resolve().parent
PROGRAM = str(Path(os.environ.get("VMFERRY_BUILD", HERE.parent.parent / "build")).resolve() / "src/cli/vmferry")
VERBS = ("start stop kill pause resume list status show log console check migrate watch set cancel recover upgrade restart-keeper control door "
         "run receive").split()
ID = "0123456789abcdef0123456789abcdef"
RESULT = {
    "vm": "web1", "id": ID, "status": "completed", "source": "a", "target": "b", "transport": "tls",
    "transport_reason": "address proved", "phases": {"begin": 3, "perform": 900}, "pause_ms": 45, "total_ms": 3200,
    "ram": {"total": 2 << 30, "transferred": 641728512},
    "conntrack": {"followed": 12, "applied": 10, "refused": 2, "lost": 0}, "warnings": [], "guest": "running there"}
PROGRESS = {"id": ID, "phase": "Perform", "percent": 43, "rate": 641728512, "dirty_rate": 20971520, "left_ms": 3000,
            "predicted_pause_ms": 45}
STATUS = {"name": "web1", "uuid": "u", "state": "running", "reason": "booted", "since": 1740000000, "pid": 123,
          "qemu_version": "10.0.2", "host": "a", "addresses": ["10.0.0.5", "fd00::5"]}
FAILED = RESULT | {"status": "failed", "guest": "running here", "target": "b",
                   "error": {"phase": "Prepare", "message": "bridge br0 is missing", "hint": "make it"}}
CANCELLED = RESULT | {"status": "cancelled", "guest": "running here"}


@pytest.fixture(scope="session")
def fake_keeper(tmp_path_factory):
    program = tmp_path_factory.mktemp("build") / "fake-keeper"
    flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "libsystemd", "json-c"], text=True).split()
    subprocess.run(["cc", "-D_GNU_SOURCE", "-Wall", "-o", program, HERE / "fake-keeper.c", *flags], check=True)
    return program


class Host:
    """A host's three directories, its keepers and a way to call the program."""

    def __init__(self, base, fake_keeper):
        self.base, self.fake_keeper, self.children = base, fake_keeper, []
        self.config, self.run_dir, self.state = base / "etc", base / "run", base / "lib"
        for d in (self.config / "vms", self.run_dir, self.state):
            d.mkdir(parents=True)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("VMFERRY_") and k != "SSH_AUTH_SOCK"}
        self.env |= {"VMFERRY_CONFIG_DIR": str(self.config), "VMFERRY_RUNTIME_DIR": str(self.run_dir),
                     "VMFERRY_STATE_DIR": str(self.state), "TZ": "UTC"}

    def keeper(self, name="web1", **script):
        (self.run_dir / name).mkdir(exist_ok=True)
        path = self.script(name, **script)
        child = subprocess.Popen([self.fake_keeper, self.run_dir / name / "control", path, self.base / f"{name}.calls"])
        self.children.append(child)
        wait(lambda: connects(self.run_dir / name / "control"))
        return child

    def script(self, file, **script):
        path = self.base / f"{file}.json"
        path.write_text(json.dumps(script))
        return str(path)

    def calls(self, name="web1"):
        path = self.base / f"{name}.calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def defined(self, name, text=None):
        (self.config / "vms" / f"{name}.vm").write_text(
            text or 'memory = "256M"\nnic net0 { bridge = "br0" }\n')

    def moved(self, name="web1", **note):
        (self.state / name).mkdir(exist_ok=True)
        (self.state / name / "moved").write_text(json.dumps({"to": "b", "at": 1740000000, "id": ID} | note))

    def popen(self, *words, **kwargs):
        kwargs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
        child = subprocess.Popen([PROGRAM, *words], env=self.env, text=True, **kwargs)
        self.children.append(child)
        return child

    def __call__(self, *words, **kwargs):
        child = self.popen(*words, **({"stdin": subprocess.PIPE} if "input" in kwargs else {}))
        out, err = child.communicate(kwargs.get("input"), timeout=LIMIT)
        assert "Sanitizer" not in err and "runtime error" not in err
        child.out, child.err, child.status = out, err, child.returncode
        return child

    def ssh(self, text='shift; exec sh -c "$1"\n'):
        """A program in ssh's place; by default it runs the remote command here."""
        path = self.base / "ssh"
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.base}/ssh.args\n{text}')
        path.chmod(0o755)
        self.env |= {"VMFERRY_SSH": str(path), "VMFERRY_REMOTE_CONTROL": f"{PROGRAM} control"}

    def close(self):
        for child in self.children:
            child.kill()
            child.wait()


@pytest.fixture
def host(tmp_path, fake_keeper):
    h = Host(tmp_path, fake_keeper)
    yield h
    h.close()


def connects(path):
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(str(path)) == 0


def wait(condition, seconds=LIMIT):
    """Until something is true; there is nothing to be woken by."""
    for _ in range(int(seconds * 100)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited in vain")


def answers(**more):
    return {"Status": STATUS, "Migrate": ID} | more


def migration(*signals, **more):
    return {"answers": answers(), "signals": [["Progress", PROGRESS], *signals]} | more


# --- help and usage

def test_help(host):
    r = host("--help")
    assert r.status == 0 and not r.err
    listed = [line.split()[0] for line in r.out.split("Verbs:\n")[1].split("\n\n")[0].splitlines()]
    assert sorted(listed) == sorted(VERBS)
    assert host("--version").out.startswith("vmferry 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_verb_help(host, verb):
    for words in ([verb, "--help"], ["--help", verb]):
        r = host(*words)
        assert r.status == 0 and not r.err and r.out.startswith(f"Usage: vmferry {verb} ")
        assert "--json" in r.out and max(map(len, r.out.splitlines())) <= 100


@pytest.mark.parametrize("words, text", [
    ([], "which verb"), (["dance"], 'no verb "dance"'), (["--dance"], "unknown option --dance"),
    (["migrate"], "NAME DEST"), (["migrate", "web1"], "NAME DEST"), (["migrate", "web1", "b", "c"], "NAME DEST"),
    (["start"], "NAME..."), (["start", "-x", "a"], "unknown option -x"), (["start", "../a"], "no name"),
    (["start", "a" * 49], "no name"), (["start", ""], "no name"),
    (["migrate", "web1", "-oProxyCommand=x"], "unknown option"), (["migrate", "web1", "--", "-oX"], "name of a host"),
    (["migrate", "web1", "ssh://-oX"], "name or address"), (["migrate", "web1", "tcp://b"], "no ssh://"),
    (["migrate", "web1", "exec:"], "no command"), (["migrate", "web1", "exec:a 'b"], "no command"),
    (["migrate", "web1", "b", "--bandwidth=fast"], "--bandwidth"), (["migrate", "web1", "b", "--bandwidth=0"], "0"),
    (["migrate", "web1", "b", "--downtime=x"], "--downtime"), (["migrate", "web1", "b", "--timeout="], "--timeout"),
    (["migrate", "web1", "b", "--conntrack=maybe"], "--conntrack"), (["migrate", "web1", "b", "--throttle=100"], "--throttle"),
    (["migrate", "web1", "b", "--throttle=x"], "--throttle"), (["migrate", "web1", "b", "--deadline=5"], "--deadline"),
    (["migrate", "web1", "b", "--deadline=perform=5"], "--deadline"), (["migrate", "web1", "b", "--deadline=link=0"], "--deadline"),
    (["migrate", "web1", "b", "--deadline=link=2d"], "--deadline"), (["set", "web1", "throttle=1000"], "--throttle"),
    (["migrate", "web1", "b", "--transport=pigeon"], "--transport"),
    (["migrate", "web1", "b", "--to-definition=/nonexistent"], "/nonexistent"),
    (["migrate", "web1", "b", "--indirect"], "unknown option"), (["migrate", "web1", "b", "--timeout"], "needs a value"),
    (["migrate", "web1", "b", "--no-live=1"], "takes no value"),
    (["check", "web1", "root@b"], "ssh://user@host"), (["set", "web1", "speed=1"], "nothing that can be set"),
    (["set", "web1", "bandwidth"], "nothing that can be set"), (["set", "web1", "downtime=never"], "--downtime"),
    (["recover", "web1", "--direct"], "NAME DEST"), (["recover", "web1", "b"], "NAME DEST"), (["door", "web1"], "other host"),
    (["recover", "web1", "b", "--direct", "--assume=runs-there"], "goes alone"), (["watch", "web1", "--direct"], "unknown option"),
    (["recover", "web1", "--assume=luck"], "--assume"), (["-H", "b", "list"], "no ssh://"),
    (["-H", "ssh://b", "run", "web1"], "-H"), (["-H", "ssh://b", "control"], "-H"),
])
def test_usage(host, words, text):
    host.keeper(answers=answers())
    r = host(*words)
    assert r.status == 2 and not r.out
    first, second = r.err.splitlines()
    assert first.startswith("vmferry: ") and text in first + second and second.startswith("hint: ")
    assert not host.calls()


@pytest.mark.parametrize("words", [["--json"], ["--json", "dance"], ["migrate", "-j", "web1"], ["list", "--json", "--dance"],
                                   ["list", "nobody", "--json"], ["-H", "ssh://b", "list", "--json"], ["control", "--json"]])
def test_errors_in_json(host, words):
    """Also where no VM is named."""
    host.ssh("exit 255")
    r = host(*words)
    said = json.loads(r.out)
    assert r.status in (1, 2) and said["error"]["message"] in r.err and said["error"].get("hint", "") in r.err


def test_full_disk(host):
    host.defined("web1")
    for words in (["list"], ["list", "--json"], ["status", "web1"]):
        with open("/dev/full", "w") as full:
            child = host.popen(*words, stdout=full)
            assert "No space left on device" in child.communicate(timeout=LIMIT)[1] and child.returncode == 1


def test_definition_with_an_error(host):
    host.defined("web1", 'memory = "lots"\n')
    assert json.loads(host("list", "--json").out)["vms"] == [{"name": "web1", "state": "off", "reason": "its definition has an error"}]
    assert host("status", "web1").out == "web1: off (its definition has an error)\n"
    for verb in ("show", "start"):
        r = host(verb, "web1")
        assert r.status == 1 and "web1.vm:1: memory" in r.err and "hint: " in r.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_not_root(fake_keeper):
    base = Path(tempfile.mkdtemp(prefix="vf"))  # pytest's own is for its user alone
    try:
        base.chmod(0o755)
        host = Host(base, fake_keeper)
        host.defined("web1")
        host.defined("web2")
        host.keeper("web2", answers=answers())
        (host.run_dir / "web2").chmod(0o700)
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", PROGRAM]

        def said(*words):
            done = subprocess.run([*nobody, *words], env=host.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            return done.returncode, done.stdout + done.stderr
        for words in (["start", "web1"], ["pause", "web2"]):
            status, text = said(*words)
            assert status == 1 and "Permission denied\nhint: " in text and "sudo" in text
        assert "only root may ask its keeper" in said("list")[1]
        host.close()
    finally:
        shutil.rmtree(base)


def test_log_of_nobody(host):
    r = host("log", "nobody")
    assert r.status == 1 and "there is no VM" in r.err and "hint: " in r.err


def test_completion(host):
    host.defined("web1")
    assert set(VERBS) <= set(host("--complete").out.split())
    words = host("--complete", "migrate").out.split()
    assert {"web1", "--transport=", "--no-live", "--json"} <= set(words) and "--definition-text=" not in words
    assert host("--complete", "migrate", "transport").out.split() == ["auto", "tls", "tcp", "ssh", "tunnel", "unix"]


@pytest.mark.parametrize("line, words, found", [
    ("vmferry mig", "vmferry|mig", ["migrate"]),
    ("vmferry -H ssh://b ca", "vmferry|-H|ssh|:|//b|ca", ["cancel"]),
    ("vmferry -H ssh://b migrate --dow", "vmferry|-H|ssh|:|//b|migrate|--dow", ["--downtime="]),
    ("vmferry --host=ssh://b stop --", "vmferry|--host|=|ssh|:|//b|stop|--", ["--all", "--timeout=", "--kill", "--host=", "--json",
                                                                           "--progress=", "--help"]),
    ("vmferry pause w", "vmferry|pause|w", ["web1"]),
    ("vmferry migrate --transport=t", "vmferry|migrate|--transport|=|t", ["tls", "tcp", "tunnel"]),
])
def test_completion_in_bash(host, line, words, found):
    """Words as bash's COMP_WORDBREAKS cuts them."""
    host.defined("web1")
    path = HERE.parent.parent / "src/cli/completion.bash"
    script = f'''compopt() {{ :; }}; source {path}; vmferry() {{ {PROGRAM} "$@"; }}
                COMP_LINE=$1 COMP_POINT=${{#1}}; IFS="|" read -ra COMP_WORDS <<<"$2"; COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
                _vmferry; printf "%s\\n" "${{COMPREPLY[@]}}"'''
    done = subprocess.run(["bash", "-c", script, "-", line, words], env=host.env, text=True, stdout=subprocess.PIPE, check=True)
    assert done.stdout.split() == found


def test_manual(host):
    """Each verb, and each option of one, is in the manual page."""
    page = (HERE.parent.parent / "man/vmferry.1").read_text().replace("\\-", "-")
    for verb in VERBS:
        assert re.search(rf"^\.It Cm {verb}\b", page, re.M), verb
        for option in re.findall(r"--([a-z-]+)", host(verb, "--help").out.split("Options:")[1]):
            assert re.search(rf"-{option}\b", page), (verb, option)


# --- one call, one answer

@pytest.mark.parametrize("words, call, out", [
    (["stop", "web1"], ["Stop", 120000000, False], "web1: shut off\n"),
    (["stop", "--timeout=5", "--kill", "web1"], ["Stop", 5000000, True], "web1: shut off\n"),
    (["kill", "web1"], ["Kill"], "web1: shut off\n"),
    (["pause", "web1"], ["Pause"], "web1: paused\n"),
    (["resume", "web1"], ["Resume"], "web1: running\n"),
    (["cancel", "web1"], ["Cancel"], "web1: migration cancelled\n"),
    (["show", "web1"], ["Show"], "cpus = 2\n"),
    (["set", "web1", "bandwidth=1G", "downtime=2s"], ["Set", '{"bandwidth":1073741824,"downtime":2000}'], "web1: set\n"),
    (["recover", "web1"], ["Recover", ""], "web1: running\n"),
    (["recover", "--assume=runs-there", "--yes", "web1"], ["Recover", "runs-there"], "web1: running\n"),
])
def test_call(host, words, call, out):
    host.keeper(answers=answers(Cancel="cancelled", Show={"text": "cpus = 2\n"}, Recover={"state": "running"}))
    r = host(*words)
    assert (r.status, r.out, host.calls()) == (0, out, [call])
    if "--assume=runs-there" in words:
        assert "what its memory held is lost" in r.err
    r = host("--json", *words)
    assert r.status == 0 and isinstance(json.loads(r.out), dict)


@pytest.mark.parametrize("name, status", [
    ("Failed", 1), ("InvalidArgument", 2), ("NotRunning", 1), ("Busy", 1), ("TooLate", 1), ("NotFound", 1), ("Denied", 1)])
@pytest.mark.parametrize("verb", [["pause", "web1"], ["migrate", "web1", "b"], ["check", "web1", "b"]])
def test_errors(host, verb, name, status):
    host.keeper(errors={m: [name, "it went wrong\x1b\ndo this"] for m in ("Pause", "Migrate", "Check")})
    r = host(*verb)
    assert (r.status, r.out, r.err) == (status, "", "vmferry: web1: it went wrong?\nhint: do this\n")
    r = host(*verb, "--json")
    assert json.loads(r.out)["error"] == {"message": "it went wrong\x1b", "hint": "do this"}


def test_many_names(host):
    for name in ("web1", "web2", "web3"):
        host.keeper(name, errors={"Pause": ["Busy", "no"]} if name == "web2" else {})
    r = host("pause", "web1", "web2", "nobody", "web3", "--json")
    assert r.status == 1 and "web2: no" in r.err and "nobody: there is no VM" in r.err
    lines = [json.loads(line) for line in r.out.splitlines()]
    assert [line["vm"] for line in lines] == ["web1", "web2", "nobody", "web3"]
    assert lines[3]["state"] == "paused" and host.calls("web3") == [["Pause"]]
    assert host("pause", "web1", "web3").status == 0


def test_keeper_dies_over_a_call(host):
    """What changes something is not asked twice, and is in doubt; a question is asked again."""
    after = host.script("after", answers=answers())
    host.keeper(instead={"Pause": ["become", after]})
    r = host("pause", "web1")
    assert r.status == 3 and "before it answered" in r.err and "vmferry status web1" in r.err
    assert host.calls() == [["Pause"]]
    host.keeper("web2", instead={"Status": ["become", after]})
    assert host("status", "web2").status == 0
    assert host.calls("web2") == [["Status"], ["Status"]]


def test_stale_socket(host):
    child = host.keeper()
    child.kill()
    child.wait()
    timer = threading.Timer(0.5, host.keeper, kwargs={"answers": answers()})
    timer.start()
    try:
        assert host("pause", "web1").status == 0
    finally:
        timer.join()


def test_keeper_gone(host):
    child = host.keeper()
    child.kill()
    child.wait()
    r = host("pause", "web1")
    assert r.status == 1 and "its keeper is gone" in r.err and "hint: " in r.err
    vms = json.loads(host("list", "--json").out)["vms"]
    assert vms == [{"name": "web1", "state": "unknown", "reason": "its keeper is gone"}]


def test_not_running(host):
    host.defined("web1")
    for words in (["pause", "web1"], ["check", "web1", "b"], ["watch", "web1"]):
        r = host(*words)
        assert r.status == 1 and "web1 is not running" in r.err and "hint: " in r.err


# --- list, status, check

def test_list(host):
    host.keeper(answers=answers(Status=STATUS | {"migration": PROGRESS}))
    host.defined("off1")
    host.moved("gone1")
    (host.state / "lost+found").mkdir()
    r = host("list")
    assert r.status == 0
    assert [line.split()[:2] for line in r.out.splitlines()] == [
        ["NAME", "STATE"], ["gone1", "moved"], ["off1", "off"], ["web1", "running"]]
    assert "Perform 43 %" in r.out and "2025-02-19 21:20:00" in r.out and "256 MiB" in r.out
    gone, off, web = json.loads(host("list", "--json").out)["vms"]
    assert gone == {"name": "gone1", "state": "moved", "reason": "to b", "since": 1740000000}
    assert off == {"name": "off1", "state": "off", "memory": 256 << 20}
    assert web["pid"] == 123 and web["migration"] == PROGRESS
    assert host("list", "nobody").status == 1 and "web1" not in host("list", "off1").out


def test_status(host):
    host.keeper(answers=answers(Status=STATUS | {"migration": PROGRESS, "last_result": FAILED}))
    host.moved("gone1")
    host.defined("off1")
    r = host("status", "web1", "off1", "gone1")
    assert r.status == 0 and r.out.startswith("web1: running (booted)\n") and "off1: off\n" in r.out
    assert "10.0.0.5, fd00::5" in r.out and "bridge br0 is missing" in r.out and "moved to  b" in r.out
    assert json.loads(host("status", "--json", "web1").out)["pid"] == 123


def test_status_nonsense(host):
    for nonsense in ("no json", "[1]", "{" * 100):
        (host.base / "web1.json").unlink(missing_ok=True)
        child = host.keeper(answers={"Status": nonsense})
        assert host("status", "web1").status == 1 and host("list").status == 0
        child.kill()


@pytest.mark.parametrize("answer, status", [
    ({"ok": True, "findings": []}, 0), ({"ok": True, "findings": [{"level": "warning", "what": "w", "hint": "h"}]}, 0),
    ({"ok": False, "findings": []}, 1), ({"findings": [{"level": "error", "what": "no br0", "hint": "make it"}]}, 1)])
def test_check(host, answer, status):
    host.keeper(answers={"Check": answer | {"transport": "ssh", "transport_reason": "r", "predicted_pause_ms": 40}})
    r = host("check", "web1", "ssh://b", "--conntrack=off")
    assert r.status == status and ("cannot move" if status else "can move") in r.out and "ssh (r)" in r.out
    assert all(f["what"] in r.out and f["hint"] in r.out for f in answer["findings"])
    assert host.calls() == [["Check", "ssh://b", '{"conntrack":false}']]
    assert json.loads(host("check", "web1", "b", "--json").out)["findings"] == answer["findings"]


# --- migrate and watch

def test_migrate(host):
    host.keeper(**migration(["Log", 1, "agent lent"], ["Log", 2, "detail"], ["Finished", RESULT | {"warnings": [
        "agent lent", "two refused"]}]))
    r = host("migrate", "web1", "b")
    assert r.status == 0 and r.out.startswith("web1: completed, a -> b\n")
    for text in ("tls (address proved)", "45 ms at most", "3.2 s", "612 MiB sent of 2.0 GiB",
                 "10 connections, 2 refused", "begin 3 ms, perform 900 ms", "guest      running there"):
        assert text in r.out
    assert "web1: Perform 43 %  612 MiB/s  dirty 20 MiB/s  3.0 s left  pause ~45 ms\n" in r.err
    assert r.err.count("warning: agent lent") == 1 and "warning: two refused" in r.err and "detail" not in r.err
    assert "web1: detail" in host("migrate", "-v", "web1", "b").err


def test_migrate_json(host):
    host.keeper(**migration(["Finished", RESULT]))
    r = host("migrate", "--json", "web1", "b")
    assert r.status == 0 and json.loads(r.out) == RESULT and not r.err


def test_migrate_options(host):
    definition = host.base / "to.vm"
    definition.write_text("cpus = 2\n")
    host.env |= {"VMFERRY_SSH": "ssh -F x", "SSH_AUTH_SOCK": "/tmp/agent"}
    host.keeper(**migration(["Finished", RESULT]))
    words = ["--transport=tcp", "--data-address=fd00::1", "--bandwidth=500M", "--downtime=300", "--timeout=5m",
             "--conntrack=off", "--no-live", "--remote-command=sudo vmferry receive", f"--to-definition={definition}",
             "--throttle=auto", "--deadline=link=7", "--deadline=gate=300ms", "--deadline=link=8"]
    assert host("migrate", "web1", "ssh://root@b:22", "--progress=none", *words).status == 0
    given = {"transport": "tcp", "data_address": "fd00::1", "bandwidth": 500 << 20, "downtime": 300, "timeout": 300,
             "conntrack": False, "live": False, "remote_command": "sudo vmferry receive", "to_definition": "cpus = 2\n",
             "throttle": 80, "deadlines": {"link": 8000, "gate": 300}}
    method, dest, options = host.calls()[0]
    assert (method, dest) == ("Migrate", "ssh://root@b:22")
    assert json.loads(options) == given | {"ssh": "ssh -F x", "ssh_auth_sock": "/tmp/agent"}
    assert host("migrate", "web1", "exec:sh -c x").status == 0
    assert host.calls()[1] == ["Migrate", "exec:sh -c x", "{}"]


@pytest.mark.parametrize("result, status", [
    (RESULT, 0), (FAILED, 1), (CANCELLED, 1), (FAILED | {"guest": "shut off"}, 1), (FAILED | {"guest": "unknown"}, 3),
    (RESULT | {"status": "in-doubt", "guest": "paused"}, 3), ({"id": ID}, 3), (RESULT | {"status": "sure"}, 3)])
def test_migrate_status(host, result, status):
    host.keeper(**migration(["Finished", RESULT | {"id": "other"}], ["Finished", "no json"], ["Finished", result]))
    r = host("migrate", "web1", "b")
    assert r.status == status
    if result == FAILED:
        assert "vmferry: web1: migration failed in Prepare: bridge br0 is missing; guest: running here\n" in r.err
        assert "hint: make it\n" in r.err
    if status == 3:
        assert "hint: " in r.err


def test_errors_on_the_way(host):
    """The migration's own error is said once."""
    host.keeper(**migration(["Log", 0, "Prepare: bridge br0 is missing"], ["Log", 0, "disk on fire"],
                            ["Finished", FAILED]))
    r = host("migrate", "web1", "b")
    assert r.status == 1 and r.err.count("bridge br0") == 1 and "web1: error: disk on fire" in r.err


def started(host):
    wait(lambda: any(c[0] == "Migrate" for c in host.calls()))


def progressed(child):
    """The first progress line stands: the id is known."""
    assert "Perform" in child.stderr.readline()


def test_interrupt_cancels(host):
    host.keeper(**migration(cancel=[["Finished", CANCELLED]]))
    child = host.popen("migrate", "web1", "b")
    progressed(child)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=LIMIT)
    assert child.returncode == 1 and "cancelled, a -> b" in out and "cancelling" in err
    assert host.calls()[-1] == ["Cancel"]


def test_interrupt_too_late(host):
    host.keeper(**migration(errors={"Cancel": ["TooLate", "the target has it"]}, cancel=[["Finished", RESULT]]))
    child = host.popen("migrate", "web1", "b")
    progressed(child)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=LIMIT)
    assert child.returncode == 0 and "not cancelled: the target has it" in err


@pytest.mark.parametrize("signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGHUP], [signal.SIGTERM]])
def test_leave(host, signals):
    host.keeper(**migration())
    child = host.popen("migrate", "web1", "b", "--json")
    started(host)
    for s in signals:
        child.send_signal(s)
        if s == signal.SIGINT and child.poll() is None:
            wait(lambda: child.poll() is not None or ["Cancel"] in host.calls())
    out, err = child.communicate(timeout=LIMIT)
    assert child.returncode == 3 and "the migration goes on" in err and "error" in json.loads(out)
    assert host("watch", "web1").status == 0


def test_nohup(host):
    host.keeper(**migration())
    child = host.popen("migrate", "web1", "b", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    progressed(child)
    child.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)


def read_to_end(master):
    """What a terminal was shown; it may come in pieces."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO: its last user has gone
        while more := os.read(master, 4096):
            shown += more
    return shown


def test_progress_on_a_terminal(host):
    host.keeper(**migration(["Finished", RESULT]))
    master, slave = pty.openpty()
    child = host.popen("migrate", "web1", "b", stderr=slave)
    os.close(slave)
    out, _ = child.communicate(timeout=LIMIT)
    shown = read_to_end(master).decode()
    assert child.returncode == 0 and "\rPerform 43 %" in shown and shown.endswith("\r\x1b[K") and "\n" not in shown


@pytest.mark.parametrize("status, more, code", [
    ({"last_result": RESULT}, [], 0), ({"last_result": FAILED}, [], 1),
    ({"migration": PROGRESS}, [["Finished", RESULT]], 0), ({}, [], 1), ({"state": "paused"}, [], 3)])
def test_keeper_restarts(host, status, more, code):
    after = host.script("after", answers={"Status": STATUS | status}, Status=more)
    host.keeper(**migration(["become", after]))
    assert host("migrate", "web1", "b").status == code
    assert [c[0] for c in host.calls()] == ["Migrate", "Status"]


def test_keeper_restarts_while_cancelling(host):
    """An order to cancel that the keeper took to its grave is given again."""
    after = host.script("after", answers={"Status": STATUS | {"migration": PROGRESS}}, cancel=[["Finished", CANCELLED]])
    host.keeper(**migration(instead={"Cancel": ["become", after]}))
    child = host.popen("migrate", "web1", "b")
    progressed(child)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=LIMIT)
    assert child.returncode == 1 and [c[0] for c in host.calls()] == ["Migrate", "Cancel", "Status", "Cancel"]


def test_keeper_ends_after_the_move(host):
    host.moved()
    host.keeper(**migration(["die"]))
    r = host("migrate", "web1", "b", "--json")
    assert r.status == 0 and json.loads(r.out)["status"] == "completed"


def test_keeper_is_lost(host):
    host.keeper(**migration(["die"]))
    r = host("migrate", "web1", "b")
    assert r.status == 3 and "did not come back" in r.err and "hint: " in r.err


def test_watch(host):
    host.keeper(answers=answers(Status=STATUS | {"migration": PROGRESS}),
                Status=[["Progress", PROGRESS], ["Finished", RESULT]])
    r = host("watch", "web1")
    assert r.status == 0 and "Perform 43 %" in r.err and "completed" in r.out
    lines = [json.loads(line) for line in host("watch", "--json", "web1").out.splitlines()]
    assert lines[0] == PROGRESS and lines[-1] == RESULT


def test_watch_idle(host):
    host.keeper(answers=answers())
    r = host("watch", "web1")
    assert r.status == 0 and r.out == "web1: no migration is running\n"
    assert json.loads(host("watch", "--json", "web1").out)["status"] == "idle"


def test_watch_is_left(host):
    host.keeper(answers=answers(Status=STATUS | {"migration": PROGRESS}))
    child = host.popen("watch", "web1")
    progressed(child)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=LIMIT)
    assert child.returncode == 3 and "goes on" in err and ["Cancel"] not in host.calls()


# --- start, recover

def test_start_refused(host):
    host.keeper()
    r = host("start", "web1")
    assert r.status == 1 and "running already" in r.err
    r = host("start", "web2")
    assert r.status == 1 and "no VM of this name" in r.err and "vms/web2.vm" in r.err
    host.defined("web3")
    host.moved("web3")
    r = host("start", "web3")
    assert r.status == 1 and "web3 moved to b at 2025-02-19 21:20:00" in r.err and "--force" in r.err
    host.defined("web4", "bogus = 1\n")
    r = host("start", "web4", "--json")
    assert r.status == 1 and "bogus" in r.err and "web4.vm:1" in json.loads(r.out)["error"]["message"]


def test_recover_needs_a_word(host):
    host.keeper(answers={"Recover": {"state": "running"}})
    r = host("recover", "--assume=runs-nowhere", "web1")
    assert r.status == 1 and "write to the same disks" in r.err and "--yes" in r.err and not host.calls()
    for answer, status in ((b"no\n", 1), (b"yes\n", 0)):
        master, slave = pty.openpty()
        child = host.popen("recover", "--assume=runs-nowhere", "web1", stdin=slave)
        os.write(master, answer)
        child.communicate(timeout=LIMIT)
        assert child.returncode == status


# --- log

def history(host, *events):
    (host.state / "web1").mkdir(exist_ok=True)
    with open(host.state / "web1" / "history", "a") as f:
        f.writelines(json.dumps(e) + "\n" for e in events)


def test_log(host):
    host.defined("web1")
    assert host("log", "web1").status == 0 and host("log", "nobody").status == 1
    event = {"time": 1740000000, "event": "moved", "details": RESULT | {"pause_ms": 45.25}}
    history(host, {"time": 1740000000.25, "event": "started"}, event)
    with open(host.state / "web1" / "history", "a") as f:
        f.write('{"time": 1, "eve')
    r = host("log", "web1")
    assert r.out == "2025-02-19 21:20:00  started\n2025-02-19 21:20:00  moved  to b, transport tls, pause 45.2 ms, total 3.2 s, " \
        f"connections 10, id {ID}\n"
    assert [json.loads(line) for line in host("log", "--json", "web1").out.splitlines()][1] == event


def test_log_follow(host):
    history(host, {"time": 1, "event": "one"})
    child = host.popen("log", "-f", "web1")
    assert "one" in child.stdout.readline()
    history(host, {"time": 2, "event": "two"})
    assert "two" in child.stdout.readline()
    path = host.state / "web1" / "history"
    path.rename(path.with_suffix(".1"))
    history(host, {"time": 3, "event": "three"})
    assert "three" in child.stdout.readline()


# --- console

class Console:
    """A guest that answers each line with ">" and the line."""

    def __init__(self, host, greeting=b""):
        (host.run_dir / "web1").mkdir(exist_ok=True)
        self.got, self.greeting, self.server = b"", greeting, socket.socket(socket.AF_UNIX)
        self.server.bind(str(host.run_dir / "web1" / "console"))
        self.server.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        self.client = self.server.accept()[0]
        self.client.send(self.greeting)
        try:
            while data := self.client.recv(4096):
                self.got += data
                self.client.send(b"> " + data)
        except ConnectionError:
            pass


@pytest.mark.parametrize("far", [False, True])
def test_console_piped(host, far):
    Console(host, b"login: ")
    host.ssh()
    r = host(*(["-H", "ssh://b"] if far else []), "console", "web1", input="root\n")
    assert r.status == 0 and r.out == "login: > root\n"


@pytest.mark.parametrize("far", [False, True])
def test_console_on_a_terminal(host, far):
    console = Console(host, b"login: ")
    host.ssh()
    master, slave = pty.openpty()
    child = host.popen(*(["-H", "ssh://b"] if far else []), "console", "web1", stdin=slave)
    assert os.read(child.stdout.fileno(), 7) == b"login: "
    os.write(master, b"a\x03")  # ^C is the guest's
    wait(lambda: console.got == b"a\x03")
    os.write(master, b"b\x1dc")
    child.communicate(timeout=LIMIT)
    assert child.returncode == 0
    wait(lambda: console.got == b"a\x03b")


def test_console_closed(host):
    console = Console(host, b"bye")
    master, slave = pty.openpty()
    child = host.popen("console", "web1", stdin=slave)
    assert os.read(child.stdout.fileno(), 3) == b"bye"
    console.client.shutdown(socket.SHUT_RDWR)
    _, err = child.communicate(timeout=LIMIT)
    assert child.returncode == 0 and "closed" in err


def test_console_missing(host):
    host.keeper(answers=answers())
    r = host("console", "web1")
    assert r.status == 1 and "no console" in r.err and "serial" in r.err
    assert "there is no VM" in host("console", "web2").err


# --- another host

def test_remote(host):
    host.ssh()
    host.keeper(**migration(["Finished", RESULT]))
    r = host("-H", "ssh://root@b", "status", "web1", "--json")
    assert r.status == 0 and json.loads(r.out)["pid"] == 123
    assert host("migrate", "--host=ssh://b", "web1", "c", "--json").out == json.dumps(RESULT, separators=(",", ":")) + "\n"
    assert host("-H", "ssh://b", "pause", "nobody").status == 1
    lines = (host.base / "ssh.args").read_text().splitlines()
    assert lines == [f"{login} {PROGRAM} control" for login in ("root@b", "b", "b")]


def test_remote_port_and_file(host):
    host.ssh('shift 3; exec sh -c "$1"\n')
    host.keeper(**migration(["Finished", RESULT]))
    (host.base / "to.vm").write_text("cpus = 2\n'\"")
    assert host("-H", "ssh://b:2222", "migrate", "web1", "c", f"--to-definition={host.base}/to.vm").status == 0
    assert json.loads(host.calls()[0][2])["to_definition"] == "cpus = 2\n'\""
    assert (host.base / "ssh.args").read_text() == f"-p 2222 b {PROGRAM} control\n"


def test_remote_usage_is_found_here(host):
    host.ssh()
    assert host("-H", "ssh://b", "migrate", "web1", "c", "--bandwidth=no").status == 2
    assert not (host.base / "ssh.args").exists()


@pytest.mark.parametrize("text, status, message", [
    ("exit 255\n", 1, "could not reach"), ("read x; exit 255\n", 3, "broke"), ("read x; exit 127\n", 1, "status 127"),
    ("read x; exit 3\n", 3, ""), ("read x; kill -9 $$\n", 3, "broke")])
def test_remote_ssh_fails(host, text, status, message):
    host.ssh(text)
    r = host("-H", "ssh://b", "migrate", "web1", "c")
    assert r.status == status and message in r.err


def test_remote_no_ssh(host):
    host.env["VMFERRY_SSH"] = "/nonexistent/ssh"
    assert host("-H", "ssh://b", "list").status == 1


def test_remote_interrupt(host):
    """^C here cancels there; ssh itself does not die of it."""
    host.ssh()
    host.keeper(**migration(cancel=[["Finished", CANCELLED]]))
    child = host.popen("-H", "ssh://b", "migrate", "web1", "c", start_new_session=True)
    progressed(child)
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=LIMIT)
    assert child.returncode == 1 and "cancelled" in out and ["Cancel"] in host.calls()


def test_remote_death_leaves_it(host):
    """The far side leaves the migration alone when the near side is gone."""
    host.ssh()
    host.keeper(**migration())
    child = host.popen("-H", "ssh://b", "migrate", "web1", "c")
    progressed(child)
    child.kill()
    assert "goes on" in child.stderr.read()
    assert ["Cancel"] not in host.calls()


@pytest.mark.parametrize("line", [
    b"", b"\n", b"{}\n", b"[]\n", b"[1]\n", b'["list"', b'["list", "a\\u0000b"]\n', b'["control"]\n', b'["run", "web1"]\n',
    b'["receive"]\n', b'["dance"]\n', b'["-H", "ssh://b", "list"]\n', b'["list", "-H", "ssh://b"]\n', b"[" * 100 + b"\n",
    b'["' + b"a" * 70000 + b'"]\n', b"[" + b'"list",' * 300 + b'"list"]\n', b"\xff\xfe\n", b'["migrate", "--help\n'])
def test_control_refuses(host, line):
    child = host.popen("control", stdin=subprocess.PIPE)
    child.stdin.buffer.write(line)
    out, err = child.communicate(timeout=LIMIT)
    assert child.returncode == 2 and err.startswith("vmferry: ") and not out


def test_control(host):
    assert json.loads(host("control", input='["list","--json"]\n').out) == {"vms": []}
    assert host("control", input='["list","--help"]\n').status == 0
    assert host("control", input='["list","--dance"]\n').status == 2


def test_output_is_full(host):
    with open("/dev/full", "w") as full:
        child = host.popen("--help", stdout=full)
        child.wait(LIMIT)
        child = host.popen("list", "--json", stdout=full)
        child.communicate(timeout=LIMIT)
    assert child.returncode == 1
