# SPDX-License-Identifier: GPL-2.0-or-later
"""vmferry-conntrack by itself, in one network namespace. Needs root.

VMFERRY_BUILD: build directory (src/companions/vmferry-conntrack in it).
"""
import json
import os
import re
import subprocess

import pytest

from test_conntrack import (LIMIT, TOOL, VM, VM6, Applier, Follower, Namespace, batch, delete, end, put,
                            tools, until)

assert tools  # a fixture

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not TOOL.exists(), reason=f"no {TOOL}"),
]

RULES = """
table inet f {
    chain i { type filter hook input priority 0; ct state established accept; }
    chain n { type nat hook prerouting priority -100; }
    chain l { type filter hook forward priority 0; ct label set 3; }
}
"""
# As `conntrack -L -o save` prints them.
LINES = f"""
-A -t 999 -u SEEN_REPLY,ASSURED -s {VM} -d 192.0.2.2 -r 192.0.2.2 -q {VM} -p tcp --sport 1 --dport 80 --reply-port-src 80 --reply-port-dst 1 --state ESTABLISHED
-A -t 999 -u SEEN_REPLY,ASSURED -s 192.0.2.1 -d 192.0.2.9 -g {VM} -q 192.0.2.1 -p tcp --sport 2 --dport 80 --reply-port-src 8080 --reply-port-dst 2 --state SYN_RECV
-A -t 999 -u SEEN_REPLY -s {VM} -d 192.0.2.1 -r 192.0.2.1 -n 192.0.2.9 -p udp --sport 2 --dport 80 --reply-port-src 80 --reply-port-dst 4000
-A -t 999 -u UNSET -w 5 -s {VM} -d 192.0.2.2 -r 192.0.2.2 -q {VM} -p udp --sport 3 --dport 80 --reply-port-src 80 --reply-port-dst 3
-A -t 999 -u UNSET -s {VM} -d 192.0.2.2 -r 192.0.2.2 -q {VM} -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 77
-A -t 999 -u UNSET -s {VM} -d 192.0.2.2 -r 192.0.2.2 -q {VM} -p 89
-A -t 999 -u UNSET --orig-zone 7 -s {VM6} -d fd00::2 -r fd00::2 -q {VM6} -p udp --sport 1 --dport 80 --reply-port-src 80 --reply-port-dst 1
-A -t 999 -u UNSET -s {VM6} -d fd00::2 -r fd00::2 -q {VM6} -p icmpv6 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 9
""".strip().splitlines()


@pytest.fixture
def spaces():
    made = [Namespace("one"), Namespace("two")]
    for ns in made:
        ns.exec("nft", "-f", "-", stdin=RULES)
        ns.exec("sysctl", "-qw", "net.netfilter.nf_conntrack_events=1")
    yield made
    for ns in made:
        ns.delete()


def tool(ns, *words, stdin=b"", status=0):
    done = subprocess.run(["ip", "netns", "exec", ns.name, TOOL, *words], input=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=LIMIT)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr.decode()


def saved(ns):
    """The whole table, as another program prints it, without what runs on."""
    lines = []
    for family in ("ipv4", "ipv6"):
        lines += ns.exec("conntrack", "-L", "-o", "save", "-f", family).splitlines()
    return sorted(re.sub(r" -t \d+", "", line) for line in lines)


OWN = ("-a", VM, "-a", VM6)


def apply(ns, data, *words, **more):
    return tool(ns, "apply", *OWN, "--settle", "1ms", *words, stdin=data, **more)


def bare(lines):
    return sorted(re.sub(r" -t \d+", "", line) for line in lines)


@pytest.mark.parametrize("form", ["wire", "save", "raw"])
def test_formats(spaces, form):
    """Text of another program in, a dump in each form, and that into another table: what conntrack(8) shows is the same."""
    one, two = spaces
    apply(one, "\n".join(LINES).encode())
    assert saved(one) == bare(LINES)
    out, _ = tool(one, "dump", *OWN, "--format", form)
    shown = [json.loads(line) for line in tool(one, "show", "--json", stdin=out)[0].splitlines()]
    assert len(shown) == len(LINES)
    apply(two, out)
    assert saved(two) == bare(LINES)
    if form == "save":
        # what conntrack(8) reads too, but for the mark that it takes another way
        two.exec("conntrack", "-F")
        two.exec("conntrack", "-R", "-", stdin=out.decode())
        assert saved(two) == bare(LINES)


def test_proxmox_text(spaces):
    one, _ = spaces
    apply(one, b"[0]")
    assert saved(one) == []
    apply(one, (LINES[0] + " --mark 107\n" + LINES[5] + " --mark 107").encode())
    assert one.exec("conntrack", "-L", "-m", "107").count("mark=107") == 2
    out, _ = tool(one, "dump", "-m", "107", "--format=save")
    assert sorted(out.decode().splitlines()) == sorted(re.sub("-t 999", re.search(rb"-t \d+", out)[0].decode(), line) + " --mark 107"
                                                       for line in (LINES[0], LINES[5]))


def test_selection(spaces):
    one, two = spaces
    lines = [LINES[0] + " --mark 0x107", LINES[2] + " --mark 0x207", LINES[3] + " --mark 0x107", LINES[6]]
    apply(one, "\n".join(lines).encode())

    def count(*words):
        return len(tool(one, "dump", "--format=save", *words)[0].splitlines())
    assert count("-a", VM) == 3
    assert count("-m", "0x107") == 2
    assert count("-m", "0x7/0xff") == 3
    assert count("-m", "0/0xff") == 1
    assert count("-z", "5") == 1
    assert count("-z", "7") == 1
    assert count("-z", "0") == 2
    assert count("-a", VM, "-m", "0x7/0xff", "-z", "0") == 2
    assert count("-a", VM6, "-m", "0x7/0xff") == 0
    # the sink's boundary is the same selection
    out, _ = tool(one, "dump", *OWN)
    said = json.loads(tool(two, "apply", "--json", "-m", "0x107", "--settle=1", stdin=out)[1].splitlines()[0])
    assert (said["applied"], said["refused"]) == (2, 2)
    assert json.loads(tool(two, "flush", "--json", "-z", "5", "-m", "0x107")[1])["deleted"] == 1
    assert len(saved(two)) == 1


def test_marks_come_and_go(spaces, tools):
    """Followed by mark: an entry that gets the mark only later, and one that loses it."""
    one, _ = spaces
    sink = tools(Applier(one, VM))

    def write(*lines):
        sink.proc.stdin.write("".join(line + "\n" for line in lines).encode())
        sink.proc.stdin.flush()
    write(LINES[0], LINES[2] + " --mark 9")
    until(lambda: len(saved(one)) == 2)
    read, out = os.pipe()
    follower = tools(Follower(one, "--mark", "9", out=out))
    os.close(out)
    write(LINES[0] + " --mark 9", LINES[2] + " --mark 8")
    until(lambda: one.exec("conntrack", "-L", "-m", "8"))
    assert follower.stop()["entries"] == 1
    with open(read, "rb") as stream:
        shown = [json.loads(line) for line in tool(one, "show", "--json", stdin=stream.read())[0].splitlines()]
    assert [(o["op"], o["protocol"], o.get("state")) for o in shown] == [
        ("put", "udp", None), ("put", "tcp", "ESTABLISHED"), ("delete", "udp", None)]


def test_keeps_current_until_switched(spaces, tools):
    """follow | apply, then standard input of follow is closed."""
    one, two = spaces
    read, write = os.pipe()
    follower = tools(Follower(one, VM, VM6, out=write))
    applier = tools(Applier(two, "--settle", "1ms", VM, VM6, stdin=read))
    os.close(read)
    os.close(write)
    apply(one, "\n".join(LINES).encode())
    until(lambda: saved(two) == bare(LINES))
    one.exec("conntrack", "-D", "-p", "udp", "-s", VM)
    until(lambda: saved(two) == saved(one))
    follower.proc.stdin.close()
    assert applier.line("applied")["failed"] == 0
    assert applier.line("settled")["applied"] == len(LINES) - 2
    assert applier.proc.wait(LIMIT) == 0 and follower.proc.wait(LIMIT) == 0


def test_cut_short(spaces):
    one, _ = spaces
    whole = batch([put(1), put(2)]) + batch([put(3)]) + end()
    for cut, status in ((len(whole), 0), (len(whole) - 20, 1), (len(whole) - 30, 1)):
        _, err = apply(one, whole[:cut], status=status)
        assert status == 0 or "hint: " in err or "in the middle of a batch" in err
        assert len(saved(one)) == (3 if cut > len(whole) - 30 else 2)
        tool(one, "flush", *OWN)
    apply(one, whole[:-20], "--undo-if-cut", status=1)
    assert saved(one) == []
    assert "without the final mark" in tool(one, "show", stdin=whole[:-20])[1]


def test_show(spaces, tmp_path):
    one, _ = spaces
    file = tmp_path / "entries"
    file.write_bytes(batch([put(1), b"\x02\x06" + delete(2)[2:]]) + end())
    out, _ = tool(one, "show", file)
    rows = out.decode().splitlines()
    assert rows[0].split()[:3] == ["OP", "PROTOCOL", "SOURCE"] and len(rows) == 3
    assert f"{VM}:1025" in rows[1] and "ESTABLISHED" in rows[1] and "assured" in rows[1]
    first, second = map(json.loads, tool(one, "show", "-j", file)[0].splitlines())
    assert first["original"] == {"src": f"{VM}:1025", "dst": "192.0.2.1:80"} and first["state"] == "ESTABLISHED"
    assert second["op"] == "delete"


@pytest.mark.parametrize("words, status, text", [
    ([], 2, "which verb?"),
    (["walk"], 2, 'no verb "walk"'),
    (["dump"], 2, "whose entries?"),
    (["dump", "-a", "10.0.0.0/8"], 2, "not an address"),
    (["dump", "-m", "1/2"], 2, "not a mark"),
    (["dump", "-z", "65536"], 2, "not a zone"),
    (["dump", "-a", VM, "x"], 2, "takes no arguments"),
    (["dump", "-a", VM, "--format", "xml"], 2, "one of: wire|save|raw"),
    (["show", "/nonexistent"], 1, "No such file"),
    (["apply", "-a", VM], 0, ""),
    (["--help"], 0, ""),
    (["follow", "--help"], 0, ""),
    (["--version"], 0, ""),
])
def test_command_line(spaces, words, status, text):
    stdin = end() if words[:1] == ["apply"] else b""
    _, err = tool(spaces[0], *words, stdin=stdin, status=status)
    assert text in err
    assert status != 2 or "hint: " in err


@pytest.mark.parametrize("data, why", [
    (b"\x00" * 100, "not connection tracking entries"),
    (b"-A -s nonsense\n", "Line 1: a value that is not right"),
    (b"# a comment\n-A -s 10.0.0.1 -p udp\n", "Line 2: addresses or protocol are missing"),
    (b"-X\n", "Line 1: not a line"),
    (b"VFCT\xff" + bytes(15), "unknown version"),
    (b"VFCT", "in the middle of a batch"),
])
def test_bad_input(spaces, data, why):
    _, err = apply(spaces[0], data, status=1)
    assert why in err
    assert saved(spaces[0]) == []


def test_nobody_reads(spaces, tools):
    one, _ = spaces
    read, write = os.pipe()
    follower = tools(Follower(one, VM, VM6, out=write))
    os.close(read)
    os.close(write)
    apply(one, LINES[0].encode())
    assert follower.proc.wait(LIMIT) == 1
    assert b"who reads the entries has gone" in follower.proc.stderr.read()


def test_stopped_is_not_switched(spaces, tools):
    """SIGTERM: no mark, so the other side knows."""
    one, _ = spaces
    follower = tools(Follower(one, VM))
    follower.proc.terminate()
    assert follower.proc.wait(LIMIT) == 1
    written = follower.proc.stdout.read()
    assert len(written) == 20 and written[5] == 0  # the first dump was empty; not the end

