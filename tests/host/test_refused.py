# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations that cannot be: one line says what is wrong, another what to do; nobody has noticed, nothing is left."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import socket
import struct
import time

import pytest
from faults import Injector
from stays import Stays, small
from testbed import BUILD, Testbed, build_option, section, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (BUILD / "src/cli/vmferry").exists(), reason="vmferry is not built"),
]


F_OFD_GETLK, FLOCK = 36, "hhqqi4x"  # fcntl(2), struct flock


@pytest.fixture(scope="module")
def bed():
    with Testbed(ct_events=1) as bed:
        bed.a.write_conf(section("deadlines", connect=5))
        yield bed


@pytest.fixture(scope="module")
def vm(bed):
    return Stays(bed)


@pytest.fixture(autouse=True)
def tidy(bed, vm):
    """What a test has left on b, when it failed, is not the next one's."""
    yield
    for name in [path.name for path in bed.b.runtime.iterdir()]:
        bed.b.vmferry("kill", name, check=False)
    for name in {path.name for path in bed.b.state.iterdir()} | {path.stem for path in (bed.b.config / "vms").iterdir()}:
        forget(bed.b, name)


@pytest.fixture
def images(bed):
    """A directory for disk images."""
    path = bed.dir / "images"
    path.mkdir(exist_ok=True)
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def host_conf(host, text="", **keys):
    host.write_conf(text, **keys)
    try:
        yield
    finally:
        host.write_conf()


@contextlib.contextmanager
def running(host, name, *args, **keys):
    """A small VM, as long as this lasts; afterwards the host has never heard of it."""
    small(host, name, *args, **keys)
    host.vmferry("start", name)
    try:
        yield
    finally:
        host.vmferry("kill", name)
        left = host.wait_clean(name)
        forget(host, name)
        assert left == []


def forget(host, name):
    (host.config / "vms" / f"{name}.vm").unlink(missing_ok=True)
    shutil.rmtree(host.state / name, ignore_errors=True)


def receive(**keys):
    return section("receive", **keys)


def refused(bed, words, hint, *options, vm="web1", to=None, check=True, phase=None, **kwargs):
    """Migrate is refused with these words in the error and in the hint; so is check, as a finding."""
    destination = to or bed.b.exec_destination()
    words, hint = ([x] if isinstance(x, str) else x for x in (words, hint))
    if check:
        done = bed.a.vmferry("check", vm, destination, *options, "--json", check=False, **kwargs)
        answer = json.loads(done.stdout)
        assert done.returncode == 1, answer
        findings = answer.get("findings") or [answer["error"] | {"level": "error", "what": answer["error"]["message"]}]
        found = [f for f in findings if f["level"] == "error"]
        assert len(found) == 1, answer
        assert all(w in found[0]["what"] for w in words) and all(h in (found[0].get("hint") or "") for h in hint), found
    done = bed.a.vmferry("migrate", vm, destination, *options, "--progress=none", check=False, **kwargs)
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert any(all(w in line for w in words) for line in lines), done.stderr
    assert all(any(h in line for line in lines) for h in hint), done.stderr
    last = bed.a.status(vm).get("last_result")
    if last:
        assert last["status"] == "failed" and last["guest"] == "running here", last
        assert phase is None or last["error"]["phase"] == phase, last
    return done


# ---- the way there ----


def test_good_pair(bed, vm):
    """The contrast: a check between hosts that fit, which changes nothing."""
    with vm.unmoved():
        for destination in (bed.b.ssh, bed.b.exec_destination()):
            answer = bed.a.vmferry_json("check", "web1", destination)
            assert answer["ok"] and answer["transport"] == "tls" and answer["target"] == "b", answer
            assert not [f for f in answer["findings"] if f["level"] != "note"], answer
        assert "can move" in bed.a.vmferry("check", "web1", bed.b.ssh).stdout
    assert not (bed.b.state / "web1" / "pin").exists()


@pytest.mark.parametrize("destination, words, hint", [
    ("ssh://nosuchhost.invalid", ["Could not resolve", "nosuchhost.invalid"], "no such host name"),
    ("ssh://b:2222", "Connection refused", "is sshd running there"),
])  # fmt: skip
def test_no_way_there(bed, vm, destination, words, hint):
    with vm.unmoved():
        refused(bed, words, hint, to=destination, phase="Begin")


def test_ports_are_used_again(bed, vm):
    """As many moves as one likes within a minute, however few ports there are."""
    with host_conf(bed.b, **{"migration-ports": "49152-49153"}), vm.unmoved():
        for _ in range(4):
            answer = bed.a.vmferry_json("check", "web1", bed.b.exec_destination())
            assert answer["transport"] == "tls", answer


def test_host_key_not_known(bed, vm):
    with vm.unmoved():
        env = {"VMFERRY_SSH": bed.a.env["VMFERRY_SSH"] + " -oUserKnownHostsFile=/dev/null"}
        refused(bed, "Host key verification failed", "accept the host's key", to=bed.b.ssh, env=env)


@pytest.mark.parametrize("destination", ["ssh://-oProxyCommand=id", "b;id", "ssh://b:99999", "exec:", "exec:'", "ssh://", "http://b"])
def test_no_destination(bed, vm, destination):
    with vm.unmoved():
        done = bed.a.vmferry("migrate", "web1", destination, check=False)
        assert done.returncode == 2 and "hint: ssh://[user@]host[:port], host, or exec:COMMAND" in done.stderr, done


@contextlib.contextmanager
def input_rule(host, rule):
    """A rule of the host's own firewall for what comes to it."""
    host.run("nft", "-f", "-", input="table inet here { chain input { type filter hook input priority 0; %s; }; }" % rule)
    try:
        yield
    finally:
        host.run("nft", "delete table inet here")


def test_host_that_does_not_answer(bed, vm):
    with input_rule(bed.b, "tcp dport 22 drop"), vm.unmoved():
        refused(bed, ["no answer", "time limit"], "deadlines", to=bed.b.ssh, check=False)


@pytest.fixture
def other_key(bed):
    """A key that b knows nothing of, and the ssh that shows it."""
    key = bed.a.dir / "other"
    bed.a.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    config = bed.a.dir / "other_config"
    config.write_text(bed.a.ssh_config.read_text().replace(f"IdentityFile {bed.a.dir}/id", f"IdentityFile {key}"))
    known = bed.b.dir / "authorized_keys"
    before = known.read_text()
    yield {"VMFERRY_SSH": f"ssh -F {config}"}, key.with_suffix(".pub").read_text().strip()
    known.write_text(before)
    for path in (key, key.with_suffix(".pub"), config):
        path.unlink()


def test_wrong_key(bed, vm, other_key):
    with vm.unmoved():
        refused(bed, "Permission denied", "key is not accepted", to=bed.b.ssh, env=other_key[0])


@pytest.mark.parametrize("command, words, hint", [
    ("no-such-vmferry receive", "not found", "vmferry is not installed there"),
    ("/nonexistent/vmferry receive", "No such file", "vmferry is not installed there"),
    ("sh -c 'echo Welcome to b!; exec vmferry receive'", '"Welcome to b!"', "must print nothing"),
    ("printf '\\033[2J\\n'", '"?[2J"', "must print nothing"),
    ("yes vmferry", "something else than vmferry", "must print nothing"),
    ("echo vmferry/2 ok -", "vmferry/2", "same version"),
    ("head -c 2000 /dev/zero", "no answer line", "must be vmferry receive"),
    ("true", "ended with status 0", "must be vmferry receive"),
    ("sh -c 'kill -9 $$'", "ended with status 255", "must be vmferry receive"),
])  # fmt: skip
def test_target_without_vmferry(bed, vm, command, words, hint):
    with vm.unmoved():
        refused(bed, words, hint, f"--remote-command={command}", to=bed.b.ssh)


def test_restricted_key(bed, vm, other_key):
    """A key that may do nothing but receive is enough, and good for nothing else."""
    env, public = other_key
    bed.b.authorize(public, 'restrict,command="vmferry receive --peer=a"')
    with vm.unmoved():
        said = bed.a.run(*env["VMFERRY_SSH"].split(), "b", "cat /etc/passwd; vmferry list", input="", check=False)
        assert "root" not in said.stdout and said.stdout.startswith("vmferry/1 error "), said
        refused(bed, ["data channel", "AllowStreamLocalForwarding"], "", "--transport=ssh", to=bed.b.ssh, env=env, check=False)
    with bed_moves(bed, vm):
        result = bed.a.migrate("web1", bed.b.ssh, "--transport=tunnel", env=env)
        assert result["transport"] == "tunnel"


@contextlib.contextmanager
def bed_moves(bed, vm):
    """web1 may move to b in here, and goes back; its connections last."""
    yield
    bed.b.migrate("web1", bed.a)
    forget(bed.b, "web1")
    vm.here(gap_ms=None)
    assert bed.b.wait_clean() == []


def test_forced_command_of_another_peer(bed, vm, other_key):
    env, public = other_key
    bed.b.authorize(public, 'restrict,command="vmferry receive --peer=c"')
    with vm.unmoved():
        refused(bed, "host b does not take VMs from a", ["receive { peers }", "--peer"], to=bed.b.ssh, env=env)


# ---- who ----


def test_peer_not_wanted(bed, vm):
    with host_conf(bed.b, receive(peers=["c", "d.example"])), vm.unmoved():
        refused(bed, "host b does not take VMs from a", "receive { peers }", phase="Begin")
    with host_conf(bed.b, receive(peers=["c", f"a.{bed.prefix}"])):
        assert bed.a.vmferry_json("check", "web1", bed.b.exec_destination())["ok"]


def test_same_host(bed, vm):
    with vm.unmoved():
        refused(bed, "source and target are the same host, a", "vmferry upgrade", to=bed.a.exec_destination())


def test_equal_host_ids(bed, vm):
    with host_conf(bed.b, host_id=f"a.{bed.prefix}"), vm.unmoved():
        refused(bed, ["hosts a and b", f"a.{bed.prefix}"], ["host-id", "machine-id"])


def test_broken_host_conf(bed, vm):
    with host_conf(bed.b, "nonsense = 1\n"), vm.unmoved():
        refused(bed, ["host.conf", "nonsense"], "")


# ---- what is there already ----


def test_name_runs_there(bed, vm):
    with running(bed.b, "web1", 99), vm.unmoved():
        status = bed.b.vmferry_json("status", "web1")
        refused(bed, "a VM named web1 is on host b already", "vmferry list")
        assert bed.b.vmferry_json("status", "web1")["pid"] == status["pid"]


def test_name_defined_there(bed, vm):
    small(bed.b, "web1", 99)
    with vm.unmoved():
        refused(bed, "a VM named web1 is on host b already", "vmferry list")
    forget(bed.b, "web1")


def test_name_known_there_with_other_uuid(bed, vm):
    small(bed.b, "web1", 99)
    bed.b.vmferry("start", "web1")
    uuid = bed.b.vmferry_json("status", "web1")["uuid"]
    bed.b.vmferry("kill", "web1")
    (bed.b.config / "vms" / "web1.vm").unlink()
    with vm.unmoved():
        refused(bed, ["host b knows another VM named web1", uuid], "rename one")
    forget(bed.b, "web1")


@pytest.mark.parametrize("nic, words", [
    ({"addresses": ["10.0.0.5"]}, ["address 10.0.0.5", "the VM other there"]),
    ({"addresses": ["FD00:0::5"]}, ["address fd00::5", "the VM other there"]),
    ({"mac": "52:54:00:12:34:05"}, ["MAC", "52:54:00:12:34:05", "the VM other there"]),
])  # fmt: skip
def test_address_is_anothers(bed, vm, nic, words):
    with running(bed.b, "other", 98, nic=nic), vm.unmoved():
        refused(bed, words, "vmferry show other")


# ---- what is missing there ----


def other_definition(bed, path, vm="web1", **change):
    """vm's definition with other values of some keys, as a file for --to-definition."""
    text = (bed.a.config / "vms" / f"{vm}.vm").read_text()
    for key, value in change.items():
        lines = [f'{key} = "{value}"' if line.startswith(f"{key} =") else line for line in text.splitlines()]
        text = "\n".join(lines if f'{key} = "{value}"' in lines else [f'{key} = "{value}"', *lines]) + "\n"
    path.write_text(text)
    return f"--to-definition={path}"


@pytest.mark.parametrize("change, words, hint", [
    ({"bridge": "br7"}, ["nic net0", "no bridge br7"], "ip link add br7 type bridge"),
    ({"bridge": "mig0"}, ["nic net0", "mig0 is not a bridge"], "ip -d link show mig0"),
    ({"kernel": "/nonexistent/kernel"}, ["kernel", "/nonexistent/kernel", "No such file"], "qemu-user"),
    ({"initrd": "/etc/shadow"}, ["initrd", "/etc/shadow", "Permission denied"], "qemu-user"),
    ({"memory-backing": "huge"}, ["memory", "128 MiB wanted", "huge pages"], "vm.nr_hugepages"),
])  # fmt: skip
def test_target_lacks(bed, vm, tmp_path, change, words, hint):
    with vm.unmoved():
        refused(bed, words, hint, other_definition(bed, tmp_path / "there.vm", **change))


@contextlib.contextmanager
def two_small_ones(bed):
    names = ["one", "other"]
    for number, name in enumerate(names):
        small(bed.a, name, 63 + number)
        bed.a.vmferry("start", name)
    try:
        yield names
    finally:
        for host in bed.hosts[:2]:
            for name in names:
                host.vmferry("kill", name, check=False)
                host.wait_clean(name)
                forget(host, name)


def limited(bed, mib):
    """b as a destination whose keepers are in a control group with that much room."""
    group = bed.b.dir / "cgroup"
    group.mkdir(exist_ok=True)
    (group / "memory.current").write_text("0\n")
    (group / "memory.max").write_text(f"{mib << 20}\n")
    return bed.b.exec_destination("env", f"VMFERRY_CGROUP_DIR={group}", "vmferry", "receive")


def promised(host, vm):
    """MiB of memory that are promised there (src/vm/room.h): the length of a lock."""
    fd = os.open(host.runtime / vm, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = fcntl.fcntl(fd, F_OFD_GETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    kind, _, _, length, _ = struct.unpack(FLOCK, found)
    return 0 if kind == fcntl.F_UNLCK else length


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
def test_room_for_one_at_a_time(bed):
    """Each of two alone has room: while one is on its way the other is refused, in Prepare, and the refusal says for whom.

    What was promised is given back as it is used, when it comes to nothing, and when it has arrived.
    """
    words, destination = ["80 MiB wanted, 159 MiB available", "promised: one 80 MiB"], limited(bed, 159)
    with two_small_ones(bed) as (one, other):
        seen = []

        def meanwhile(word=""):
            [key] = bed.b.runtime.glob(f"{one}/qemu.*/tls-*")  # a directory in which QEMU can put nothing
            assert key.stat().st_uid == 0 and key.stat().st_mode & 0o777 == 0o711, key.stat()
            refused(bed, words, "try again", vm=other, to=destination, phase="Prepare")
            seen.append(word)
            return word

        def being_used():
            wait_until(lambda: promised(bed.b, other) < 80)

        injector = Injector([bed.b])
        try:
            for word, status in (("link", "failed"), ("", "completed")):
                injector.begin({(bed.b, "PREPARE_REPLY", "before"): lambda: meanwhile(word)})
                assert bed.a.migrate(one, destination, check=False)["status"] == status
                assert seen.pop() == word
        finally:
            injector.close()
        assert promised(bed.b, one) == 0
        injector = Injector([bed.a])
        try:
            injector.begin({(bed.a, "LAST_DELTA", "before"): being_used})
            bed.a.migrate(other, destination)
            assert injector.struck
        finally:
            injector.close()
        assert {bed.b.status(name)["state"] for name in (one, other)} == {"running"}
        assert promised(bed.b, other) == 0


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
def test_disk_that_leads_out_later(bed, images):
    """A link that leads somewhere else between the check and the start: what QEMU would get is what counts."""
    outside, link = bed.dir / "outside.img", images / "link.img"
    outside.write_bytes(bytes(1 << 20))
    link.symlink_to(images / "a.img")

    def lead_out():
        link.unlink()
        link.symlink_to(outside)

    with disk_vm(bed, images, file=link, shared=True), host_conf(bed.b, receive(disk_paths=[images])):
        injector = Injector([bed.b])
        try:
            injector.begin({(bed.b, "START_QEMU", "before"): lead_out})
            refused(bed, ["disk d0", "leads out of"], "disk-paths", vm="store", phase="Prepare", check=False)
            assert injector.struck
        finally:
            injector.close()
    outside.unlink()


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
def test_group_of_qemu(bed):
    """Under systemd QEMU gets a control group of its own; here it is put into one. What limits that one counts, too."""
    try:
        [mount] = [line.split()[1] for line in open("/proc/mounts") if line.split()[2] == "cgroup2"]
        group = pathlib.Path(mount) / f"vmferry-test-{os.getpid()}"
        group.mkdir()
    except (OSError, ValueError):
        pytest.skip("no control groups (v2) to make one in")
    destination = limited(bed, 1000)
    scope = bed.b.dir / "cgroup" / group.name
    scope.mkdir()
    (scope / "memory.max").write_text(f"{31 << 20}\n")

    def put_there():
        [qemu] = [p for p, line in bed.b.processes().items() if "guest=one," in line]
        (group / "cgroup.procs").write_text(str(qemu))

    try:
        with two_small_ones(bed) as (one, _):
            injector = Injector([bed.b])
            try:
                words = ["memory: 32 MiB wanted", f"/{group.name} leaves 31 MiB"]
                injector.begin({(bed.b, "START_QEMU", "after"): put_there})
                refused(bed, words, "memory.max", vm=one, to=destination, phase="Prepare", check=False)
                assert injector.struck
                (scope / "memory.max").write_text(f"{32 << 20}\n")
                injector.begin({(bed.b, "START_QEMU", "after"): put_there})
                bed.a.migrate(one, destination)
                assert injector.struck
            finally:
                injector.close()
    finally:
        group.rmdir()


@pytest.mark.parametrize("key, value", [("cpu", "max"), ("mac", "52:54:00:00:00:01"), ("uuid", "11111111-2222-4333-8444-555555555555")])
def test_definition_that_the_guest_would_notice(bed, vm, tmp_path, key, value):
    option = other_definition(bed, tmp_path / "there.vm", **{key: value})
    with vm.unmoved():
        done = bed.a.vmferry("migrate", "web1", bed.b.exec_destination(), option, check=False)
        assert done.returncode == 2 and "changes what the guest sees: " in done.stderr and key in done.stderr, done
        assert "only host paths" in done.stderr


def test_target_lacks_qemu(bed, vm):
    with host_conf(bed.b, binary="/nonexistent/qemu"), vm.unmoved():
        refused(bed, "there is no program /nonexistent/qemu", "install QEMU")


# ---- disks ----


@contextlib.contextmanager
def disk_vm(bed, images, **disk):
    image = images / "a.img"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o666)
    with running(bed.a, "store", 60, text=section("disk d0", **{"file": image, "format": "raw"} | disk)):
        yield image


def test_disk_not_shared(bed, vm, images):
    with disk_vm(bed, images), vm.unmoved():
        refused(bed, ["disk d0", "not shared"], "shared = true", vm="store")


@pytest.mark.parametrize("cache", ["writeback", "unsafe", "writethrough"])
def test_disk_with_unsafe_cache(bed, vm, images, cache):
    with disk_vm(bed, images, shared=True, cache=cache), vm.unmoved():
        done = bed.a.vmferry("migrate", "store", bed.b.exec_destination(), check=False)
        assert done.returncode != 0 and "disk d0" in done.stderr and cache in done.stderr, done
        assert '"none" or "directsync"' in done.stderr
        done = bed.a.vmferry("check", "store", bed.b.exec_destination(), check=False)
        assert done.returncode != 0 and cache in done.stdout + done.stderr


def test_disk_is_not_the_same(bed, vm, images, tmp_path):
    """Both hosts must see one file; the proof of that is taken away again."""
    there = images / "there"
    there.mkdir()
    with disk_vm(bed, images, shared=True) as image, vm.unmoved():
        copy = there / "a.img"
        option = other_definition(bed, tmp_path / "there.vm", "store", file=copy)
        refused(bed, ["disk d0", str(copy), "No such file"], "storage that both hosts mount", option, vm="store")
        shutil.copy(image, copy)
        refused(bed, ["disk d0", str(copy), "not the file the source uses"], "storage that both hosts mount", option, vm="store")
        assert sorted(p.name for p in images.rglob("*.vmferry-*")) == []
        answer = bed.a.vmferry_json("check", "store", bed.b.exec_destination())
        assert answer["ok"], answer
        assert sorted(p.name for p in images.rglob("*.vmferry-*")) == []


# ---- the target's policy ----


@pytest.mark.parametrize("key, value, words", [
    ("prefixes", ["10.1.0.0/16", "fd00::/64"], ["nic net0", "address 10.0.0.5"]),
    ("prefixes", ["10.0.0.4/31", "fd00::/126"], ["nic net0", "address fd00::5"]),
    ("bridges", ["br1"], ["nic net0", "bridge br0"]),
    ("disk-paths", ["/srv/nowhere"], ["kernel"]),
    ("max-memory", "127M", ["128 MiB", "127 MiB"]),
])  # fmt: skip
def test_policy(bed, vm, key, value, words):
    with host_conf(bed.b, receive(**{key: value})), vm.unmoved():
        refused(bed, [*words, "refused by b"], ["host.conf on b", f"receive {{ {key} }}"], phase="Prepare")


def test_policy_allows(bed, vm):
    """The contrast: one that names all that web1 has."""
    kernel = str(pathlib.Path(vm.guest.kernel).resolve().parent)
    keys = {"prefixes": ["10.0.0.0/24", "fd00::/64"], "bridges": ["br0"], "disk-paths": [kernel], "max-memory": "128M", "peers": ["a"]}
    with host_conf(bed.b, receive(**keys)), vm.unmoved():
        assert bed.a.vmferry_json("check", "web1", bed.b.exec_destination())["ok"]


def test_policy_on_programs(bed, vm):
    with host_conf(bed.b, receive(binaries=["/usr/bin/qemu-other"]), binary=None), vm.unmoved():
        refused(bed, ["binary /", "refused by b"], ["host.conf on b", "receive { binaries }"])


def test_policy_on_qemu_args(bed, vm):
    with running(bed.a, "args", 61, qemu_args=["-name", "x"]), vm.unmoved():
        refused(bed, ["qemu-args", "refused by b"], ["host.conf on b", "receive { qemu-args }"], vm="args")
        with host_conf(bed.b, receive(qemu_args=True)):
            assert bed.a.vmferry_json("check", "args", bed.b.exec_destination())["ok"]


# ---- transports ----


def test_transport_not_taken(bed, vm):
    with host_conf(bed.b, transport="ssh"), vm.unmoved():
        refused(bed, "host b takes migrations by ssh only", "--transport=ssh", "--transport=tcp")


def test_transport_that_cannot_be(bed, vm):
    with vm.unmoved():
        refused(bed, "ssh needs an ssh destination", "--transport=tunnel", "--transport=ssh")
        done = bed.a.vmferry("migrate", "web1", bed.b.ssh, "--transport=pigeon", check=False)
        assert done.returncode == 2 and "pigeon" in done.stderr
        refused(bed, ["data address", "10.99.0.99"], "--transport=ssh", "--transport=tcp", "--data-address=10.99.0.99")


def test_no_migration_address(bed, vm):
    """Nothing else is known of the target's network: the stream goes where the control link goes."""
    with host_conf(bed.b, migration_address=None):
        with bed_moves(bed, vm):
            result = bed.a.migrate("web1", bed.b.ssh)
            assert result["transport"] == "ssh" and "migration-address" in result["transport_reason"], result
        with vm.unmoved():
            answer = bed.a.vmferry_json("check", "web1", bed.b.exec_destination())
            assert answer["ok"] and answer["transport"] == "tunnel" and "migration-address" in answer["transport_reason"]
            refused(bed, "migration-address", "--transport=ssh", "--transport=tls")


def test_ports_firewalled(bed, vm):
    """DROP says nothing: found out within a second, before QEMU could hang on it."""
    with input_rule(bed.b, "tcp dport 49152-49215 drop"):
        with vm.unmoved():
            begin = time.monotonic()
            answer = bed.a.vmferry_json("check", "web1", bed.b.ssh)
            assert 1 <= time.monotonic() - begin < 10
            assert answer["ok"] and answer["transport"] == "ssh" and "10.99.0.2 port 49" in answer["transport_reason"], answer
            words = ["10.99.0.2 port 49", "did not answer within 1 s"]
            refused(bed, words, "open migration-ports", "--transport=tls", phase="Prepare")
        with bed_moves(bed, vm):
            result = bed.a.migrate("web1", bed.b.exec_destination())
            assert result["transport"] == "tunnel" and words[1] in result["transport_reason"], result


def test_ports_rejected(bed, vm):
    with input_rule(bed.b, "tcp dport 49152-49215 reject with tcp reset"), vm.unmoved():
        answer = bed.a.vmferry_json("check", "web1", bed.b.ssh)
        assert answer["ok"] and answer["transport"] == "ssh" and "Connection refused" in answer["transport_reason"], answer
        refused(bed, ["10.99.0.2 port 49", "Connection refused"], "open migration-ports", "--transport=tcp")


def test_no_port_left(bed, vm):
    """Every port of migration-ports is somebody else's."""
    with bed.b.netns.entered():
        taken = socket.create_server(("10.99.0.2", 49300))
    with taken, host_conf(bed.b, migration_ports="49300-49300"), vm.unmoved():
        answer = bed.a.vmferry_json("check", "web1", bed.b.ssh)
        assert answer["ok"] and answer["transport"] == "ssh", answer
        refused(bed, "no data address", "--transport=ssh", "--transport=tcp")


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_port_leads_to_somebody_silent(bed, vm, transport):
    """A rule on the target sends QEMU's connections elsewhere, though the address is proved: the guest does not stay frozen."""
    with bed.b.netns.entered():
        silent = socket.create_server(("10.99.0.2", 50000), backlog=16)
    rules = "table ip astray { chain pre { type nat hook prerouting priority -100; tcp dport 49152 redirect to :50000; }; }"
    bed.b.run("nft", "-f", "-", input=rules)
    try:
        with silent, vm.unmoved():
            words = ["10.99.0.2:49152 is silent"]
            refused(bed, words, "--transport=ssh", f"--transport={transport}", check=False, phase="Perform")
    finally:
        bed.b.run("nft", "delete table ip astray")


# ---- definitions ----


@pytest.mark.parametrize("text, line, words", [
    ('memory = "64M"\nmemory = "64M"\n', 2, "memory"),
    ('memory = "64M"\ncolour = "red"\n', 2, "colour"),
    ('memory = "lots"\n', 1, "lots"),
    ("memory = 64M64\n", 1, "memory"),
    ('memory = "64M"\nnic net0 {\nbridge = "br0"\n', None, "nic"),
    ('memory = "64M"\nnic net0 {\nbridge = "br0"\nmac = "52:54:00:12:34"\n}\n', 4, "52:54:00:12:34"),
    ('memory = "64M"\nnic net0 {\nbridge = "br0"\naddresses = { "10.0.0.300" }\n}\n', 4, "10.0.0.300"),
    ('memory = "64M"\ndisk d0 {\nfile = "relative.img"\nformat = "raw"\n}\n', 3, "relative.img"),
    ('memory = "64M"\nmachine = "q35,accel=kvm"\n', 2, "q35,accel=kvm"),
    ('memory = "64M"\ncpu = "max\x1b[2J"\n', 2, "control character 0x1b"),
    ('memory = "64M"\ncpus = "four"\n', 2, "four"),
    ("", None, "memory"),
])  # fmt: skip
def test_definition_with_a_mistake(bed, vm, text, line, words):
    path = bed.b.config / "vms" / "bad1.vm"
    path.write_text(text)
    with vm.unmoved():
        done = bed.b.vmferry("start", "bad1", check=False)
        assert done.returncode == 1 and words in done.stderr, done
        assert f"{path}:{line}:" in done.stderr if line else f"{path}:" in done.stderr, done.stderr
        assert "\x1b" not in done.stderr
    assert not (bed.b.runtime / "bad1").exists() and not (bed.b.state / "bad1").exists()
    path.unlink()


def test_definition_that_is_not_there(bed, vm):
    with vm.unmoved():
        done = bed.b.vmferry("start", "nobody", check=False)
        assert done.returncode == 1 and "nobody" in done.stderr and "vmferry.vm(5)" in done.stderr, done
        done = bed.b.vmferry("migrate", "nobody", bed.a.ssh, check=False)
        assert done.returncode == 1 and "nobody" in done.stderr, done
        assert bed.b.vmferry("start", "../web1", check=False).returncode == 2
    assert not (bed.b.state / "nobody").exists()


@pytest.mark.parametrize("change, words", [
    ({"binary": "/nonexistent/qemu"}, "there is no program"),
    ({"nic": {"bridge": "br9"}}, "there is no bridge br9"),
    ({"kernel": "/nonexistent/k"}, "/nonexistent/k"),
    ({"machine": "nosuchmachine"}, "nosuchmachine"),
])  # fmt: skip
def test_definition_this_host_cannot_run(bed, vm, change, words):
    small(bed.b, "bad2", 62, **change)
    with vm.unmoved():
        done = bed.b.vmferry("start", "bad2", check=False)
        assert done.returncode == 1 and words in done.stderr, done
    forget(bed.b, "bad2")
