# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench measures what it says, tried with few entries: no figure is looked at here but those that cannot depend on the machine."""

import json
import os
import pathlib
import subprocess

import pytest

TREE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("VMFERRY_BUILD", TREE / "build")).resolve()
SCALE = 200

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (BUILD / "bench/ct-bench").exists(), reason=f"no ct-bench in {BUILD}"),
]


def bench(*words):
    program = [TREE / "bench/conntrack", f"--scale={SCALE}", "--rounds=3", "--repeat=1", "--no-conntrackd", *words]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, timeout=300, env=os.environ | {"VMFERRY_BUILD": str(BUILD)})
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("case,entries", [("100k, 10k/s", 100000), ("10k of 1M, 1k/s", 10000)])
def test_switch_is_measured_and_both_sides_hold_the_same(case, entries):
    (result,) = json.loads(bench("--json", "--section=switch", f"--case={case}"))["switch"]
    assert result["applied"] == result["entries"] > entries // SCALE  # and what the generator opened
    assert (result["missing"], result["different"], result["failed"]) == (0, 0, 0)
    assert len(result["switches"]) == 3 and all(s["total_ms"] > 0 for s in result["switches"])
    assert result["churn"]["connections"] > 0 and result["events"] > 0


def test_everything_else_is_measured():
    result = json.loads(bench("--json", "--section=peers", "--section=apply", "--section=datapath"))
    assert set(result["peers"]) == {"conntrack -L | -R", "vmferry-conntrack dump | apply"}
    assert result["apply"][0]["applied"] == 100000 // SCALE
    assert len(result["datapath"]) == 3 and all(v[0] > 0 for v in result["datapath"].values())


def test_real_moves_are_measured():
    result = json.loads(bench("--json", "--section=moves", "--section=bulk"))  # five moves
    assert [r["rate"] for r in result["moves"]] == [0, 1000 // SCALE, 10000 // SCALE]
    assert all(r["applied"] == r["followed"] >= 100000 // SCALE and r["barrier_ms"] > 0 for r in result["moves"])
    assert len(result["bulk"]) == 2 and all(r["gap_ms"] > 0 and r["invalid"] == 0 for r in result["bulk"])


def test_the_pause_in_qemus_stream_is_measured():
    """Three moves of one guest: with nothing, with our helper, and with conntrack(8) run by Save."""
    rows = json.loads(bench("--json", "--section=stream"))["stream"]
    assert [r["what"] for r in rows] == ["without", "vmferry-vmstate", "conntrack -L in Save"]
    assert all(0 < r["pause_ms"] < r["wall_ms"] for r in rows)
    assert [r["carried"] for r in rows] == [0, 10000 // SCALE, 10000 // SCALE]


def test_a_table_is_printed():
    text = bench("--section=apply")
    assert "made a second" in text and "400000" in text


def test_upgrades_are_measured_beside_their_peers():
    words = ["--json", "--scale=32", "--rounds=1", "--repeat=1", "--case=512M, writing"]
    done = subprocess.run([TREE / "bench/upgrade", *words], stdout=subprocess.PIPE, text=True, timeout=600,
                          env=os.environ | {"VMFERRY_BUILD": str(BUILD)})  # fmt: skip
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["failures"] == []
    rows = result["rows"]
    assert [r["way"] for r in rows] == 4 * ["vmferry upgrade"] + ["live over a UNIX socket"] + 2 * ["save, stop, start"]
    assert all(0 < r["pause_ms"] < r["wall_ms"] and r["gap_ms"] > 0 and r["written_mb_s"] > 0 for r in rows)
    assert len(result["goals"]) == 5
