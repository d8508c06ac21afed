# SPDX-License-Identifier: Apache-2.0
"""Fallbacks: the mechanism in use, the reasons against the others, and the snapshot's account of it."""

import errno

import pytest

from nettop.errors import ExitCode, PermissionMissing, SourceFailed, Unsupported, UsageError
from nettop.kernel.bpf.compiling import no_loading
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism, attach_best, check_chosen
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Hook
from nettop.snapshots.snapshot import Snapshot

HOOK = Hook("accepts", "who accepts", ("pid",))
FALLBACKS = Fallbacks(
    HOOK, (Mechanism("fexit/accept"), Mechanism("kretprobe/accept"), Mechanism("tp_btf/message"))
)
BEST, SECOND, LAST = FALLBACKS.mechanisms


class Kernel:
    """A kernel that accepts all mechanisms except these, and records the attempts."""

    def __init__(self, **refusals: Exception) -> None:
        self.refusals = refusals
        self.attempts: list[str] = []

    def take(self, mechanism: Mechanism) -> None:
        """Accept a mechanism, or refuse it by the first word of its name."""
        self.attempts.append(mechanism.name)
        refusal = self.refusals.get(mechanism.name.partition("/")[0])
        if refusal:
            raise refusal


def test_nothing_is_attached_while_nettop_exits() -> None:
    """While nettop exits, the next hook raises SourceFailed and attaches nothing."""
    kernel = Kernel()
    with no_loading(), pytest.raises(SourceFailed, match="nettop is exiting"):
        attach_best(FALLBACKS, kernel.take, {})
    assert not kernel.attempts
    assert attach_best(FALLBACKS, kernel.take, {}) == HookStatus("accepts", "fexit/accept", (), ("pid",))
    assert kernel.attempts == ["fexit/accept"]


def test_refused_mechanisms_are_named_in_order() -> None:
    """Each mechanism tried before has its reason, whichever error gave it."""
    kernel = Kernel(
        fexit=Unsupported("no such function"), kretprobe=OSError(errno.EPERM, "Operation not permitted")
    )
    hook = attach_best(FALLBACKS, kernel.take, {})
    assert hook.mechanism == "tp_btf/message"
    assert hook.refused == (
        ("fexit/accept", "no such function"),
        ("kretprobe/accept", "Operation not permitted"),
    )
    assert str(hook) == "tp_btf/message"


def test_without_any_mechanism_the_fields_are_not_available() -> None:
    """The snapshot says n/a and why, for the hook and for each of its fields."""
    kernel = Kernel(
        fexit=Unsupported("gone"),
        kretprobe=PermissionMissing("not yours"),
        tp_btf=Unsupported("never called"),
    )
    hook = attach_best(FALLBACKS, kernel.take, {})
    why = "fexit/accept: gone; kretprobe/accept: not yours; tp_btf/message: never called"
    snapshot = Snapshot(
        "connections", 1, 2, {}, hooks=(hook, HookStatus("events", "tp_btf")), gaps={"namespace 7": "no"}
    )
    assert hook.mechanism is None
    assert snapshot.missing == {"pid": why}
    assert snapshot.via == {"accepts": f"n/a: {why}", "events": "tp_btf", "namespace 7": "no"}
    assert snapshot.hook("accepts") is hook
    assert snapshot.hook("routes") is None


@pytest.mark.parametrize(
    ("refusals", "word", "code", "remedy"),
    [
        ((Unsupported("a"), Unsupported("b", "boot"), Unsupported("c")), "", ExitCode.UNSUPPORTED, "boot"),
        (
            (Unsupported("a"), PermissionMissing("b", "sudo"), Unsupported("c")),
            "",
            ExitCode.PERMISSION,
            "sudo",
        ),
        ((OSError(errno.EPERM, "no"), Unsupported("b"), Unsupported("c")), "", ExitCode.PERMISSION, ""),
        ((PermissionMissing("a"),) * 3, "none", ExitCode.USAGE, "remove --mechanism accepts=none"),
        (
            (Unsupported("a"), PermissionMissing("b", "sudo"), Unsupported("c")),
            "kret",
            ExitCode.PERMISSION,
            "sudo",
        ),
    ],
)
def test_the_exit_code_says_who_can_help(
    refusals: tuple[Exception, ...], word: str, code: ExitCode, remedy: str
) -> None:
    """A missing permission, or the user's choice, outweighs a missing kernel feature."""
    kernel = Kernel(**dict(zip(("fexit", "kretprobe", "tp_btf"), refusals, strict=True)))
    hook = attach_best(FALLBACKS, kernel.take, {"accepts": word} if word else {})
    assert (hook.mechanism, hook.code, hook.remedy) == (None, code, remedy)
    error = hook.error("lens.table")
    assert error.exit_code is code
    assert (
        error.what == hook.why if code is ExitCode.PERMISSION else f"lens.table is not available: {hook.why}"
    )
    assert error.remedy


@pytest.mark.parametrize(("word", "taken"), [("kretprobe/accept", SECOND), ("tp", LAST)])
def test_a_chosen_mechanism_is_the_only_one_tried(word: str, taken: Mechanism) -> None:
    """A prefix of its name is enough; for the others the reason is that choice."""
    kernel = Kernel()
    hook = attach_best(FALLBACKS, kernel.take, {"accepts": word, "events": "none"})
    assert (hook.mechanism, kernel.attempts) == (taken.name, [taken.name])
    assert dict(hook.refused)["fexit/accept"] == "another mechanism was chosen"


@pytest.mark.parametrize(("word", "tried"), [("kretprobe", ["kretprobe/accept"]), ("none", [])])
def test_a_choice_that_leaves_none(word: str, tried: list[str]) -> None:
    """A chosen mechanism is never replaced by another one; `none` tries nothing."""
    kernel = Kernel(kretprobe=Unsupported("no kprobes"))
    hook = attach_best(FALLBACKS, kernel.take, {"accepts": word})
    assert (hook.mechanism, kernel.attempts) == (None, tried)
    assert not tried or ("kretprobe/accept", "no kprobes") in hook.refused


@pytest.mark.parametrize("failure", [SourceFailed("the loader was killed"), ValueError("a bug")])
def test_other_errors_are_not_refusals(failure: Exception) -> None:
    """A dead child or a bug is raised, and no worse mechanism is tried."""
    with pytest.raises(type(failure)):
        attach_best(FALLBACKS, Kernel(fexit=failure).take, {})


def test_an_unknown_mechanism_is_refused_with_the_nearest() -> None:
    """An unknown mechanism is refused with the nearest name; hooks of other lenses are ignored."""
    check_chosen([FALLBACKS], {"accepts": "kretprobe", "packets": "anything"})
    check_chosen([FALLBACKS], {"accepts": "none"})
    with pytest.raises(UsageError, match="'kretprobes'") as error:
        check_chosen([FALLBACKS], {"accepts": "kretprobes"})
    assert "kretprobe/accept" in error.value.remedy
