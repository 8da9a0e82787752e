"""When servers that share a GPU with training sleep and wake."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.gpu_sharing import AWAY, IDLE_S, Seen, SharingPhase, next_phase

PHASES = st.sampled_from(SharingPhase)
SEEN = st.builds(
    Seen,
    asleep=st.integers(0, 2),
    awake=st.integers(0, 2),
    planned=st.booleans(),
    busy=st.booleans(),
    idle_s=st.floats(0, 10),
)


def seen(
    asleep: int = 0,
    awake: int = 0,
    planned: bool = False,
    busy: bool = False,
    idle_s: float = 0.0,
) -> Seen:
    return Seen(asleep, awake, planned, busy, idle_s)


def test_a_start_finds_out_how_the_servers_stand() -> None:
    assert next_phase(SharingPhase.UNKNOWN, seen()) is SharingPhase.UNKNOWN
    assert next_phase(SharingPhase.UNKNOWN, seen(awake=1)) is SharingPhase.AWAKE
    assert next_phase(SharingPhase.UNKNOWN, seen(asleep=1)) is SharingPhase.WAKING
    assert next_phase(SharingPhase.UNKNOWN, seen(asleep=1, awake=1)) is SharingPhase.WAKING


def test_servers_that_sleep_for_a_training_lease_sleep_on() -> None:
    assert next_phase(SharingPhase.UNKNOWN, seen(asleep=1, planned=True)) is SharingPhase.ASLEEP


def test_a_server_found_asleep_is_woken() -> None:
    assert next_phase(SharingPhase.AWAKE, seen(asleep=1)) is SharingPhase.WAKING
    assert next_phase(SharingPhase.AWAKE, seen(awake=2)) is SharingPhase.AWAKE


def test_a_server_that_was_restarted_beside_a_child_is_put_to_sleep() -> None:
    assert next_phase(SharingPhase.ASLEEP, seen(awake=1, busy=True)) is SharingPhase.FALLING_ASLEEP
    assert next_phase(SharingPhase.ASLEEP, seen(asleep=1, busy=True)) is SharingPhase.ASLEEP


def test_a_plan_that_is_given_up_lets_the_servers_wake() -> None:
    for phase in (SharingPhase.FALLING_ASLEEP, SharingPhase.ASLEEP):
        assert next_phase(phase, seen(asleep=1, idle_s=IDLE_S - 0.1)) is phase
        assert next_phase(phase, seen(asleep=1, idle_s=IDLE_S)) is SharingPhase.WAKING


@given(PHASES, SEEN)
def test_no_server_is_woken_beside_a_child(phase: SharingPhase, what: Seen) -> None:
    if what.busy and phase in (SharingPhase.ASLEEP, SharingPhase.FALLING_ASLEEP):
        assert next_phase(phase, what) is not SharingPhase.WAKING


@given(PHASES, SEEN)
def test_servers_that_sleep_for_nobody_wake_whatever_was_thought_of_them(
    phase: SharingPhase, what: Seen
) -> None:
    idle = what._replace(asleep=1, busy=False, planned=False, idle_s=IDLE_S)
    assert next_phase(phase, idle) is SharingPhase.WAKING


@given(PHASES, SEEN)
def test_nobody_falls_asleep_but_for_a_child(phase: SharingPhase, what: Seen) -> None:
    if phase not in AWAY:
        assert next_phase(phase, what) is not SharingPhase.FALLING_ASLEEP
