# SPDX-License-Identifier: Apache-2.0
"""The hook ladder: which way is taken, what is said of the others, and what a lens's snapshot makes of it."""

import errno

import pytest

from nettop.errors import PermissionMissing, SourceFailed, Unsupported, UsageError
from nettop.kernel.ladder import Ladder, Way, check_asked, climb
from nettop.snapshots.schema import Point
from nettop.snapshots.snapshot import Hook, Snapshot

POINT = Point("accepts", "who accepts", ("pid",))
LADDER = Ladder(POINT, (Way("fexit/accept"), Way("kretprobe/accept"), Way("tp_btf/message")))
BEST, SECOND, LAST = LADDER.ways


class Kernel:
    """Takes ways but those that it refuses, and remembers what it was asked."""

    def __init__(self, **refusals: Exception) -> None:
        self.refusals = refusals
        self.asked: list[str] = []

    def take(self, way: Way) -> None:
        """Refuse by the first word of the way's name, or take it."""
        self.asked.append(way.name)
        refusal = self.refusals.get(way.name.partition("/")[0])
        if refusal:
            raise refusal


def test_the_best_way_is_taken_and_no_other_tried() -> None:
    """What works first is used."""
    kernel = Kernel()
    assert climb(LADDER, kernel.take, {}) == Hook("accepts", "fexit/accept", (), ("pid",))
    assert kernel.asked == ["fexit/accept"]


def test_refused_ways_are_named_in_order() -> None:
    """Each way that was tried before says why it is not used, whichever error said so."""
    kernel = Kernel(
        fexit=Unsupported("no such function"), kretprobe=OSError(errno.EPERM, "Operation not permitted")
    )
    hook = climb(LADDER, kernel.take, {})
    assert hook.way == "tp_btf/message"
    assert hook.refused == (
        ("fexit/accept", "no such function"),
        ("kretprobe/accept", "Operation not permitted"),
    )
    assert str(hook) == "tp_btf/message"


def test_without_any_way_the_fields_are_not_here() -> None:
    """The snapshot says n/a and why, for the point and for each of its fields."""
    kernel = Kernel(
        fexit=Unsupported("gone"),
        kretprobe=PermissionMissing("not yours"),
        tp_btf=Unsupported("never called"),
    )
    hook = climb(LADDER, kernel.take, {})
    why = "fexit/accept: gone; kretprobe/accept: not yours; tp_btf/message: never called"
    snapshot = Snapshot(
        "connections", 1, 2, {}, hooks=(hook, Hook("events", "tp_btf")), gaps={"namespace 7": "no"}
    )
    assert hook.way is None
    assert snapshot.missing == {"pid": why}
    assert snapshot.via == {"accepts": f"n/a: {why}", "events": "tp_btf", "namespace 7": "no"}
    assert snapshot.hook("accepts") is hook
    assert snapshot.hook("routes") is None


@pytest.mark.parametrize(
    ("word", "taken"), [("kretprobe", SECOND), ("kretprobe/accept", SECOND), ("tp", LAST)]
)
def test_a_way_that_is_asked_for_is_the_only_one_tried(word: str, taken: Way) -> None:
    """The beginning of its name is enough; the others say that another was asked for."""
    kernel = Kernel()
    hook = climb(LADDER, kernel.take, {"accepts": word, "events": "none"})
    assert (hook.way, kernel.asked) == (taken.name, [taken.name])
    assert dict(hook.refused)["fexit/accept"] == "another way was asked for"


def test_a_way_that_is_asked_for_and_refused_leaves_none() -> None:
    """Nobody who asks for a way gets another one in its place."""
    kernel = Kernel(kretprobe=Unsupported("no kprobes"))
    hook = climb(LADDER, kernel.take, {"accepts": "kretprobe"})
    assert hook.way is None
    assert ("kretprobe/accept", "no kprobes") in hook.refused


def test_a_point_may_be_left_alone() -> None:
    """`none` tries nothing."""
    kernel = Kernel()
    assert climb(LADDER, kernel.take, {"accepts": "none"}).way is None
    assert kernel.asked == []


@pytest.mark.parametrize("failure", [SourceFailed("the loader was killed"), ValueError("a bug")])
def test_what_is_no_refusal_is_not_taken_for_one(failure: Exception) -> None:
    """A child that dies, or a bug, must not lead to a worse way in silence."""
    with pytest.raises(type(failure)):
        climb(LADDER, Kernel(fexit=failure).take, {})


def test_an_unknown_way_is_told_with_the_nearest() -> None:
    """A point of another lens is nobody's mistake here."""
    check_asked([LADDER], {"accepts": "kretprobe", "packets": "anything"})
    check_asked([LADDER], {"accepts": "none"})
    with pytest.raises(UsageError, match="'kretprobes'") as error:
        check_asked([LADDER], {"accepts": "kretprobes"})
    assert "kretprobe/accept" in error.value.remedy
