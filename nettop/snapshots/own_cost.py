# SPDX-License-Identifier: Apache-2.0
"""nettop's own cost: a table of the engine, `self` in --view and logs. It is not a lens and has no tab."""

from __future__ import annotations

from nettop.snapshots.schema import Field, FieldRole, Hook, Kind, Lens, Metrics, Table

KINDS = {
    1: "total",
    2: "limit",
    3: "thread",
    4: "children",
    5: "program",
    6: "iterator",
    7: "maps",
    8: "step",
}
"""`total` is all of nettop, `limit` the effect of --max-overhead. A `program` runs at its hook, on the time of the
task there; an `iterator` runs in nettop's own threads, and its time is part of theirs. `children` are child processes
that have exited, `maps` a lens's kernel memory; a `step` is a recurring task of nettop."""

COSTS = Table(
    name="costs",
    fields=(
        Field("id", Kind.KEY, "ID", "number of the row", importance=2, role=FieldRole.NUMBER),
        Field("kind", Kind.ENUM, "KIND", "kind of cost; the time of an iterator or a step is part of its thread's",
              importance=90, labels=KINDS),
        Field("name", Kind.TEXT, "NAME", "the program's hook, or the step's task", width=30, importance=100,
              role=FieldRole.PROSE),
        Field("lens", Kind.TEXT, "LENS", "the lens it belongs to, if any", importance=60, role=FieldRole.DECLARED),
        Field("runs", Kind.COUNTER, "RUNS", "number of runs; for programs, since statistics were enabled", width=9,
              importance=70),
        Field("time_ns", Kind.COUNTER, "TIME", "CPU time; its rate is a share of one CPU", unit="ns", importance=95,
              rate_title="SHARE"),
        Field("mean_ns", Kind.GAUGE, "MEAN WALL", "mean wall time of a run, including a step's waits", unit="ns"),
        Field("longest_ns", Kind.GAUGE, "MAX WALL", "longest wall time of a step's run", unit="ns", importance=55),
        Field("memory", Kind.GAUGE, "MEMORY", "resident memory of the process; kernel memory of maps and programs "
              "(memlock in fdinfo)", unit="bytes", importance=65),
        Field("late", Kind.COUNTER, "LATE", "readings skipped because the previous one took too long", width=6,
              importance=30),
        Field("lost", Kind.COUNTER, "LOST", "events or rows lost to full tables and races", width=6, importance=40),
        Field("note", Kind.TEXT, "NOTE", "the effect of --max-overhead, or why a number is missing", width=40,
              importance=45, role=FieldRole.PROSE),
    ),
    screen=("kind", "name", "lens", "time_ns_per_s", "runs_per_s", "mean_ns", "longest_ns", "memory", "note"),
    text=("kind", "name", "lens", "runs", "time_ns", "mean_ns", "longest_ns", "memory", "late", "lost", "note"),
    sort="-time_ns_per_s",
    text_sort="id",
    adds_up=False,
    metrics=(Metrics(("kind", "name", "lens"), ("time_ns", "runs", "memory", "late", "lost")),),
)  # fmt: skip

HOOK_PROGRAMS = Hook("programs", "run count and run time of BPF programs (the kernel's statistics)")

SELF = Lens(
    id="self",
    title="Overhead",
    order=0,
    digit="",
    question="what nettop itself costs",
    tables=(COSTS,),
    hooks=(HOOK_PROGRAMS,),
)
