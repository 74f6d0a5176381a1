# SPDX-License-Identifier: GPL-2.0-or-later
"""names.pml and rows.pml: the engine's table in Promela, with every seeded bug in it, each switched on by its number (SEED).

There are two models: MOVE of two hosts between which a guest moves, UPGRADE of one where its QEMU is changed for another."""

import dataclasses
import pathlib
import re
from typing import Callable

HERE = pathlib.Path(__file__).parent


class Problem(Exception):
    pass


@dataclasses.dataclass
class Row:
    state: str
    event: str
    need: int
    without: int
    next: str
    actions: list
    seed: int = 0  # of the bug that this row is
    wrong_in: list = dataclasses.field(default_factory=list)  # bugs in which another takes its place


@dataclasses.dataclass
class Seed:
    """A bug. Rows made wrong: (state, event, an action that marks the row, next state, actions); "" marks the first row, "-" the
    first one without actions; a row that is not in the table is added before the others. @frame: a switch of the model's own
    file, SEED_NAME. The rest is what it takes to see it."""

    what: str
    rows: list = ()
    frame: str = ""
    faults: int = 2
    attempts: int = 1
    lease: int = 0
    gone: int = 0
    paused: int = 0
    nolive: int = 0
    spice: int = 0


MOVE_SEEDS = [
    Seed(
        "Finish before COMMIT is journalled",
        [
            ("S_COMMIT", "ENTER", "JOURNAL_COMMIT", "S_RELEASE", []),
            ("S_SEND", "ENTER", "SEND_FINISH", "S_WAIT", ["SEND_FINISH", "JOURNAL_COMMIT"]),
        ],
    ),
    Seed("a COMMIT that could not be written is sent", [("S_COMMIT", "ACTION_FAILED", "", "S_RELEASE", [])]),
    Seed("resume when the link is lost, without an outcome", [("S_WAIT", "LINK_LOST", "", "S_NEVER_LEASE", [])]),
    Seed("resume at the deadline, without an outcome", [("S_WAIT", "DEADLINE", "", "S_NEVER_LEASE", [])]),
    Seed("resume after a restart, without an outcome", [("S_DOUBT", "RESTART", "", "S_NEVER_LEASE", [])]),
    Seed("cancel after COMMIT", [("S_WAIT", "CANCEL", "", "S_CANCEL", [])], frame="CANCEL"),
    Seed("start does not look at the journal", frame="START"),
    Seed("in doubt for ever", [("S_DOUBT", "REACHED", "", "S_DOUBT", [])]),
    Seed("SIGKILL before GONE", [("S_GONE", "ENTER", "", "S_DESTROY", [])]),
    Seed("SIGKILL in doubt", [("S_DOUBT", "REACHED", "", "S_WAIT", ["KILL_QEMU", "SEND_OUTCOME"])]),
    Seed("the guest resumes without an OWNER record", [("S_NEVER_RECORD", "ENTER", "", "S_NEVER_RESUME", [])]),
    Seed("the guest stays paused after a cancel", [("S_CANCEL", "SETTLED", "CONT_BACK", "S_IDLE", ["SEND_ABORT", "END"])]),
    Seed("a cancel does not wait until QEMU settles", [("S_CANCEL", "ENTER", "SETTLE", "S_IDLE", ["SEND_ABORT", "END"])]),
    Seed("the note of a migration goes before its cont is answered", frame="NOTE_BEFORE_CONT"),
    Seed("Finish without the barrier", [("T_WAIT", "FINISH", "", "T_LEASE", [])]),
    Seed("cont before COMMITTED is journalled", [("T_JOURNAL", "ENTER", "JOURNAL_COMMITTED", "T_CONT", [])]),
    Seed("a COMMITTED that could not be written is carried out", [("T_JOURNAL", "ACTION_FAILED", "", "T_CONT", [])]),
    Seed("the target aborts what it has COMMITTED", [("T_CONT", "RESTART", "CONT", "T_ABORT", [])]),
    Seed("the target does not carry out what it has COMMITTED", [("T_CONT", "RESTART", "CONT", "T_OWNER", [])]),
    Seed("the target forgets COMMITTED early", frame="FORGET_EARLY"),
    Seed("QEMU dead after cont is taken for Never", [("T_RESUMING", "QEMU_DEAD", "", "T_ABORT", [])]),
    Seed("an error of cont after a restart is taken for Never", [("T_RESUMING", "CONT_ERROR", "KILL_QEMU", "T_ABORT", [])], faults=3),
    Seed("Never without a record", [("T_ABORT", "ENTER", "", "T_KILL", [])]),
    Seed("Never before SIGKILL", [("T_KILL", "ENTER", "KILL_QEMU", "T_NEVER", [])]),
    Seed("Never before QEMU is reaped", [("T_KILL", "ENTER", "KILL_QEMU", "T_NEVER", ["KILL_QEMU"])]),
    Seed("a restart runs a QEMU that is merely loaded", frame="RUN_LOADED"),
    Seed("the target waits for ever", [("T_WAIT", "LINK_LOST", "", "T_WAIT", [])]),
    Seed("Outcome does not force a decision", [("T_WAIT", "OUTCOME", "", "T_WAIT", [])]),
    Seed("stuck when GONE cannot be written", [("S_GONE", "ACTION_FAILED", "", "S_GONE", [])]),
    Seed("ABORTED over COMMITTED is not tried again", [("T_ABORT", "RETRY", "JOURNAL_ABORTED", "T_ABORT", [])], gone=1, faults=3),
    Seed("lease released while QEMU may resume", [("S_PERFORM", "PRE_SWITCHOVER", "", "S_HOLD", ["RELEASE_LEASE"])], lease=1),
    Seed("the guest resumes without its lease", [("S_NEVER_LEASE", "ENTER", "", "S_NEVER_RECORD", [])], lease=1),
    Seed("Finish without having given the lease back", [("S_RELEASE", "LEASE_FAILED", "", "S_SEND", [])], faults=3, lease=1),
    Seed("COMMITTED without the lease", [("T_LEASE", "ENTER", "ACQUIRE_LEASE", "T_JOURNAL", [])], lease=1),
    Seed("a lease that is not to be had is no matter", [("T_LEASE", "LEASE_FAILED", "", "T_JOURNAL", [])], lease=1),
    Seed("resume in doubt with the target's generation", [("S_DOUBT", "LEASE", "", "S_NEVER_LEASE", ["DROP_LINK"])], frame="TAKE_ANY", faults=3, lease=1),
    Seed("COMMITTED without waiting for the lease", [("T_LEASE", "DEADLINE", "", "T_JOURNAL", [])], lease=1),
    Seed("a lease that is given up, and is given back all the same when the guest runs again", frame="UNSTOPPED", lease=1),
    Seed("resume in doubt without a look at the lease", [("S_DOUBT", "LEASE", "", "S_NEVER_RECORD", ["DROP_LINK"])], lease=1),
    Seed("no live: the guest is not resumed after a failure", [("S_CANCEL", "SETTLED", "CONT_BACK", "S_IDLE", ["SEND_ABORT", "END"])], nolive=1),
    Seed("no live: that we have stopped the guest is forgotten", frame="STOP_FORGOTTEN", nolive=1),
    Seed("a paused guest runs when its migration has failed", frame="RUNS_ANYWAY", paused=1),
    Seed("a paused guest runs on the target", frame="FINISH_RUNS", paused=1),
    Seed("a person's pause is not noted for the next keeper", frame="PAUSE_NOT_NOTED", paused=1),
    Seed("the source is killed before SPICE's clients are handed over", frame="HASTE", spice=1),
]


UPGRADE_SEEDS = [
    Seed("no note of an upgrade", [("U_BEGIN", "ENTER", "NOTE_UPGRADE", "U_START", ["START_NEW"])]),
    Seed("the note leaves a record of the former upgrade", frame="RECORD_LEFT", faults=3, attempts=2, paused=1),
    Seed("the record names a new one that has not answered since it loaded", [("U_LOAD", "LOADED", "ASK_NEW", "U_CHECK", [])]),
    Seed("a new one that hangs is waited for without an end", [("U_LOOK", "DEADLINE", "", "U_LOOK", [])]),
    Seed("nobody is told that the new one does not answer", [("U_RESUMING", "DEADLINE", "SAY_SILENT", "U_RESUMING", [])]),
    Seed("SIGKILL to the old one before the record", [("U_CHECK", "ENTER", "COMMIT_NEW", "U_KILL", [])]),
    Seed("SIGKILL to the old one before the new one has loaded", [("U_PERFORM", "POSTMIGRATE", "", "U_KILL", ["COMMIT_NEW"])]),
    Seed("a record that could not be written is carried out", [("U_CHECK", "ACTION_FAILED", "", "U_KILL", [])]),
    Seed("cont to the new one before the record", [("U_CHECK", "ENTER", "COMMIT_NEW", "U_KILL", ["CONT_NEW", "COMMIT_NEW"])]),
    Seed("cont to the new one before SIGKILL to the old one", [("U_KILL", "ENTER", "KILL_OLD", "U_RESUMING", ["CONT_NEW"])]),
    Seed("the old one resumes after the commit", [("U_RESUMING", "CONT_ERROR", "", "S_CANCEL", [])]),
    Seed("cancelled, and the old one resumes, after the commit", [("U_KILL", "ENTER", "KILL_OLD", "S_CANCEL", [])]),
    Seed("back without SIGKILL to the new one", [("U_BACK", "ENTER", "KILL_NEW", "U_CLEAR", [])]),
    Seed("back after a restart without SIGKILL to the new one", [("U_KILL", "RESTART", "KILL_OLD", "S_CANCEL", [])]),
    Seed("SIGKILL to the old one although the new one is dead", [("U_KILL", "ENTER", "-", "U_RESUME", ["KILL_OLD"])]),
    Seed("the same after a restart", [("U_KILL", "RESTART", "-", "U_RESUME", ["KILL_OLD"])]),
    Seed("back, and the record names the new one", [("U_CLEAR", "ENTER", "CLEAR_NEW", "S_CANCEL", [])], faults=3),
    Seed("the guest stays paused in the old one", [("S_CANCEL", "SETTLED", "CONT_BACK", "S_IDLE", ["END"])]),
    Seed("the guest stays paused in the new one", [("U_RESUME", "ENTER", "CONT_NEW", "U_REAP", [])]),
    Seed("a paused guest is resumed", [("U_RESUME", "ENTER", "-", "U_RESUMING", ["CONT_NEW"])], paused=1),
    Seed("no way on after a restart", [("U_RESUME", "RESTART", "CONT_NEW", "U_RESUME", [])]),
    Seed("cont is not tried again", [("U_RESUMING", "CONT_ERROR", "", "U_REAP", [])]),
    Seed("the end before the old one is gone", [("U_RESUMING", "CONT_OK", "ANNOUNCE", "S_IDLE", ["END"])]),
    Seed("a guest that shuts down while no keeper is there is not seen", frame="UNSEEN_OFF"),
    Seed("who had the guest dies before it is asked, and nobody looks for the other one", frame="UNASKED"),
    Seed("SIGKILL to the old one before the new one has the lease", [("U_OPEN", "DATA_READY", "SHARE_LEASE", "U_PERFORM", ["START_UPGRADE"])]),
    Seed("the lease is the old one's alone before it is decided", [("U_LOAD", "LOADED", "", "U_CHECK", ["OWN_LEASE"])]),
    Seed("the lease stays shared after an upgrade", [("U_REAP", "QEMU_GONE", "OWN_LEASE", "S_IDLE", ["END"])]),
    Seed("the lease stays shared on the way back", [("S_CANCEL", "SETTLED", "OWN_LEASE", "S_IDLE", ["CONT_BACK", "SEND_ABORT", "END"])]),
    Seed("saved: SIGKILL before the record", [("U_SAVED", "ENTER", "COMMIT_SAVE", "U_QUIT", [])]),
    Seed("saved: the record does not wait until the file is on its disk", [("U_SAVE", "POSTMIGRATE", "", "U_SAVED", [])]),
    Seed("saved: a record that could not be written is carried out", [("U_SAVED", "ACTION_FAILED", "", "U_QUIT", [])]),
    Seed("saved: the old one resumes after the commit", [("U_QUIT", "ENTER", "KILL_SAVED", "S_CANCEL", [])]),
    Seed("saved: the new one starts before the old one is gone", [("U_QUIT", "ENTER", "KILL_SAVED", "U_EMPTY", ["KILL_SAVED"])]),
    Seed("saved: the guest runs while the file has it", [("U_RESTORED", "ENTER", "USE_UP", "U_RESUME", [])]),
    Seed("saved: a record of its use that could not be written is carried out", [("U_RESTORED", "ACTION_FAILED", "", "U_RESUME", [])]),
    Seed("saved: used up before it is loaded", [("U_FILL", "QEMU_READY", "LOAD_FILE", "U_RESUME", ["LOAD_FILE", "USE_UP"])]),
    Seed("saved: the old version starts beside the new one", [("U_RESTORE", "FAILED", "", "U_NEXT", [])]),
    Seed("saved: the old version is not tried", [("U_NEXT", "ENTER", "FALL_BACK", "S_IDLE", ["END"])]),
    Seed("saved: the new version is tried for ever", [("U_NEXT", "ENTER", "FALL_BACK", "U_EMPTY", [])], faults=1),
    Seed("saved: the file goes at the end, though it has the guest", frame="FILE_DROPPED", faults=3),
    Seed("saved: a keeper that comes back does not look at the file", frame="SAVED_UNSEEN"),
    Seed("saved: a file that is used up is loaded again", frame="USED_AGAIN"),
    Seed("saved: the guest goes on though another host has taken the lease", frame="TAKEN"),
]


def parse(text):
    """What print-rows prints."""
    table = {"state": {}, "event": [], "action": [], "fact": []}
    rows = []
    for line in text.splitlines():
        kind, *words = line.split()
        if kind == "row":
            rows.append(Row(words[0], words[1], int(words[2]), int(words[3]), words[4], words[5:]))
        elif kind == "state":
            table["state"][words[0]] = words[1] == "1"
        else:
            table[kind].append(words[0])
    return table, rows


def in_place(row):
    return row.state.startswith("U_") or row.next.startswith("U_")


@dataclasses.dataclass(eq=False)
class Model:
    """@file: the world around the engine; @has: which rows are its own; @never_raised: events that it does not raise, and why."""

    file: str
    parameters: tuple
    has: Callable
    seeds: list
    never_raised: dict

    def text(self):
        return "".join((HERE / name).read_text() for name in (self.file, "engine.pml", "step.pml"))

    def rows(self, rows):
        return [r for r in rows if self.has(r)]


MOVE = Model(
    "vmferry.pml",
    ("FAULTS", "ATTEMPTS", "LEASE", "OFFLINE", "GONE", "NOLIVE", "PAUSED", "SPICE", "SEED"),
    lambda row: not in_place(row),
    MOVE_SEEDS,
    {
        "FOLLOWED": "the connection table is always complete: waiting for it only delays, within a limit",
    },
)
UPGRADE = Model(
    "upgrade.pml",
    ("FAULTS", "ATTEMPTS", "PAUSED", "SEED"),
    lambda row: in_place(row) or row.state == "S_CANCEL",
    UPGRADE_SEEDS,
    {},
)


def with_seeds(model, rows):
    rows = list(rows)
    for number, seed in enumerate(model.seeds, 1):
        for state, event, marked, then, actions in seed.rows:
            at = [
                i for i, r in enumerate(rows)
                if not r.seed and (r.state, r.event) == (state, event) and (marked in ("", *r.actions) or marked == "-" and not r.actions)
            ]
            if marked and not at:
                raise Problem(f"seeded bug '{seed.what}': no row {state} {event} with {marked}")
            if at:
                right = rows[at[0]]
                right.wrong_in.append(number)
                wrong = dataclasses.replace(right, next=then, actions=actions, seed=number, wrong_in=[])
                rows.insert(at[0], wrong)
            else:
                rows.insert(0, Row(state, event, 0, 0, then, actions, number))
    return rows


def check_known(model, table, rows):
    """Every action and fact of the rows has its meaning in the model."""
    frame = model.text()
    for action in {a for r in rows for a in r.actions}:
        if not re.search(rf"^inline do_{action}\(\)", frame, re.M):
            raise Problem(f"model/{model.file} does not say what action {action} does: inline do_{action}()")
    for bit, fact in enumerate(table["fact"]):
        if any((r.need | r.without) >> bit & 1 for r in rows) and not re.search(rf"^#define fact_{fact}\b", frame, re.M):
            raise Problem(f"model/{model.file} does not say when fact {fact} holds: #define fact_{fact}")
    for event in {r.event for r in rows}:
        if not re.search(rf"\bEV_{event}\b", frame) and event not in model.never_raised:
            raise Problem(f"nothing in model/{model.file} raises event {event}: EV_{event}")


def guard(table, row):
    terms = [f"SEED == {row.seed}"] if row.seed else [f"SEED != {n}" for n in row.wrong_in]
    for bit, fact in enumerate(table["fact"]):
        if row.need >> bit & 1:
            terms.append(f"fact_{fact}")
        if row.without >> bit & 1:
            terms.append(f"!fact_{fact}")
    return " && ".join(terms) or "true"


def pick_rows(table, rows, indent):
    """The first row that fits: each in the else of the one before."""
    if not rows:
        return [f"{indent}skip"]
    row, numbers = rows[0], {a: n for n, a in enumerate(table["action"])}
    todo = sum(numbers[a] * len(table["action"]) ** i for i, a in enumerate(row.actions))
    take = f"found = 1; then[h] = {row.next}; todo[h] = {todo}"
    comment = f" /* {', '.join(row.actions)} */" if row.actions else ""
    test = guard(table, row)
    if test == "true":
        return [f"{indent}{take}{comment}"]
    return (
        [f"{indent}if", f"{indent}:: {test} -> {take}{comment}", f"{indent}:: else ->"]
        + pick_rows(table, rows[1:], indent + "\t")
        + [f"{indent}fi"]
    )


def pick(table, rows):
    out = ["inline pick()", "{", "\tif"]
    for state in table["state"]:
        here = [r for r in rows if r.state == state]
        if not here:
            continue
        out += [f"\t:: state[h] == {state} ->", "\t\tif"]
        for event in dict.fromkeys(r.event for r in here):
            out.append(f"\t\t:: e == EV_{event} ->")
            out += pick_rows(table, [r for r in here if r.event == event], "\t\t\t")
        out += ["\t\t:: else", "\t\tfi"]
    return out + ["\t:: else", "\tfi", "}"]


def act(rows):
    out = ["inline act(a)", "{", "\tif"]
    for action in sorted({a for r in rows for a in r.actions}):
        out.append(f"\t:: a == DO_{action} -> do_{action}()")
    return out + ["\tfi", "}"]


def one_of(name, states):
    tests = " || ".join(f"(s) == {s}" for s in states) or "false"
    return f"#define {name}(s) ({tests})"


def promela(model, text):
    """names.pml and rows.pml from print-rows' output."""
    table, plain = parse(text)
    rows = with_seeds(model, model.rows(plain))
    check_known(model, table, rows)
    head = "/* Generated by model/rows.py from src/move/rows.h: do not edit. */"
    out = [head]
    out += [f"#define {s} {n}" for n, s in enumerate(table["state"])]
    out += [f"#define EV_{e} {n}" for n, e in enumerate(table["event"], 1)]
    out += [f"#define DO_{a} {n}" for n, a in enumerate(table["action"])]
    out.append(f"#define ACTIONS {len(table['action'])}")
    out += [f"#define SEED_{s.frame} (SEED == {n})" for n, s in enumerate(model.seeds, 1) if s.frame]
    known = [f for f in table["fact"] if re.search(rf"^#define fact_{f}\b", model.text(), re.M)]
    out.append("#define facts() (" + " + ".join(f"(fact_{f} -> {1 << table['fact'].index(f)} : 0)" for f in known) + ")")
    for name, event in (("has_enter", "ENTER"), ("has_deadline", "DEADLINE"), ("has_failed", "FAILED")):
        out.append(one_of(name, dict.fromkeys(r.state for r in rows if r.event == event)))
    out.append(one_of("committed", [s for s, committed in table["state"].items() if committed]))
    return {"names.pml": "\n".join(out) + "\n", "rows.pml": "\n".join([head] + pick(table, rows) + act(rows)) + "\n"}


def unpack(table, todo):
    actions = []
    while todo:
        actions.append(table["action"][todo % len(table["action"])])
        todo //= len(table["action"])
    return actions


def words_of(table, row):
    facts = [("" if row.need >> bit & 1 else "not ") + f for bit, f in enumerate(table["fact"]) if (row.need | row.without) >> bit & 1]
    return f"{row.state} {row.event}{' if ' if facts else ''}{', '.join(facts)}"


# Rows that no search takes, and why they stay.
UNTAKEN = {
    "S_HOLD FOLLOWED if LINK, not CANCELLED, FOLLOW_DONE, TARGET_ACTIVE": "the model's connection table is always complete",
    "S_HOLD ACTION_FAILED": "no action there fails today; one that did must lead back",
    "S_COMMIT ENTER": "a guard: the facts are looked at once more at the point of no return",
    "S_SEND ENTER if not LINK": "a guard, as well",
    "U_CHECK ENTER": "a guard, as well",
    "U_SAVED ENTER": "a guard, as well",
    "U_SYNC GUEST_OFF": "a guest that is stopped does not shut down",
    "U_RESTORED QEMU_DEAD": "a QEMU that ends between its word and our answer: in the model nothing lies between",
    "T_PREP OUTCOME": "only a peer that asks out of order",
    "T_GATE BARRIER if LOAD_DONE, BARRIER_DONE": "only a peer that sends the last Delta after Finish",
    "T_GATE ENTER if LOAD_DONE, GATE_PASSED": "a gate that is open from the start: in the model its time is over right after",
}


def never_taken(models, text, lines):
    """Rows of the models that none of their lines "row ..." is, each with the reason why it stays, or None."""
    table, plain = parse(text)
    states, taken = list(table["state"]), set()
    for line in lines:
        state, event, facts, _, _ = map(int, line.split()[1:])
        for i, r in enumerate(plain):
            if (r.state, r.event) == (states[state], table["event"][event]) and facts & r.need == r.need and not facts & r.without:
                taken.add(i)
                break
    names = [words_of(table, r) for i, r in enumerate(plain) if i not in taken and any(m.has(r) for m in models)]
    return {name: UNTAKEN.get(name) for name in names}


def in_words(text, line):
    table, _ = parse(text)
    state, event, facts, then, todo = map(int, line.split()[1:])
    known = ", ".join(f for bit, f in enumerate(table["fact"]) if facts >> bit & 1)
    states = list(table["state"])
    return f"{states[state]} {table['event'][event]} -> {states[then]}: {', '.join(unpack(table, todo))} [{known}]"
