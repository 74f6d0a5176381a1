#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of src/conntrack/ in a network namespace of its own. Needs root.

usage: bench/conntrack.py [BUILD [ENTRIES...]]      default: build 10000 100000

Per line: entries made, updated and deleted a second; the first dump; what a delta costs with nothing and with 1000 changes
(half of them new, half ended), reading the events included; setting all right after the move.
"""
import json
import os
import pathlib
import subprocess
import sys

CHURN = 1000
COLUMNS = [("entries", "entries", 0), ("create_per_s", "create/s", 0), ("update_per_s", "update/s", 0),
           ("delete_per_s", "delete/s", 0), ("dump_ms", "dump ms", 0), ("first_delta_ms", "first delta ms", 1),
           ("idle_delta_us", "idle delta us", 0), ("delta_ms", f"delta of {CHURN} ms", 2),
           ("delta_worst_ms", "worst ms", 2), ("settle_ms", "settle ms", 0)]


def main():
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
    tool = build / "tests/host/ct-tool"
    name = f"ctbench{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        # Without a rule that asks for the state, nothing is tracked.
        rules = "table inet f { chain i { type filter hook input priority 0; ct state established accept; }; }"
        subprocess.run([*inside, "nft", rules], check=True)
        subprocess.run([*inside, "sysctl", "-qw", "net.netfilter.nf_conntrack_events=1"], check=True)
        print("| " + " | ".join(title for _, title, _ in COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
        for entries in sys.argv[2:] or ["10000", "100000"]:
            done = subprocess.run([*inside, tool, "bench", entries, str(CHURN)], check=True, stdout=subprocess.PIPE)
            row = json.loads(done.stdout)
            print("| " + " | ".join(f"{row[key]:.{digits}f}" for key, _, digits in COLUMNS) + " |")
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


if __name__ == "__main__":
    main()
