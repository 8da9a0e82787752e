"""What is weak in what was made, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from daemon.onboarding.config_file import SuiteChoice
from daemon.onboarding.known_facts import KnownFact
from daemon.onboarding.skill import FEW_TRACES, Skill
from policies.gate.figures import percent, pp
from policies.gate.limits import PRESETS
from policies.gate.records import Role
from policies.records import Record
from policies.text import counted

FEW_KNOWN: Final = 150
_CUT: Final = 0.1


class Weakness(Record):
    """What is weak, and what to do; `fatal` where no candidate could pass the gate."""

    what: str
    advice: str
    fatal: bool = False


def weaknesses(
    known: Sequence[KnownFact],
    suites: Sequence[SuiteChoice],
    skill: Skill,
    traces: int,
    unanswered: int,
) -> Iterator[Weakness]:
    """The worst first."""
    if not traces:
        yield Weakness(
            what="the base solved no problem that could be replayed, so no probe can be fitted",
            advice="give problems that it can do (--skill)",
            fatal=True,
        )
    for suite in suites:
        yield from _of(suite)
    if 0 < traces < FEW_TRACES:
        yield Weakness(
            what=f"{counted(traces, 'solved problem')} for the probe and replay: that is few",
            advice="give more problems, or such as the base can do (--skill)",
        )
    if len(known) < FEW_KNOWN:
        yield Weakness(
            what=f"only {counted(len(known), 'known fact')}; {FEW_KNOWN} or more would be good",
            advice="add questions that it can answer (--questions, --logs)",
        )
    yield from _of_solutions(skill, unanswered)


def _of_solutions(skill: Skill, unanswered: int) -> Iterator[Weakness]:
    cut = [one for rows in skill.parts.values() for one in rows if one.reply.cut]
    asked = sum(map(len, skill.parts.values()))
    if asked and len(cut) > _CUT * asked:
        yield Weakness(
            what=f"{percent(len(cut) / asked)} of the solutions were cut off",
            advice="allow longer ones (--solution-tokens)",
        )
    if unanswered:
        yield Weakness(
            what=f"the server gave no answer to {unanswered} problems",
            advice="the same command with --force asks them again",
        )
    if skill.left_out:
        kinds = ", ".join(f"{name} ({percent(share)})" for name, share in skill.left_out.items())
        yield Weakness(
            what=f"kinds of problems that the base cannot solve are left out: {kinds}",
            advice="give problems that stand for what you rely on (--skill)",
        )


def _of(suite: SuiteChoice) -> Iterator[Weakness]:
    sight = suite.sight
    required = suite.role == Role.REASONING
    what = f"suite {suite.name!r}"
    more = "--skill, --problems" if required else "--questions, --logs"
    if not sight.usable:
        asked = counted(sight.items, "question")
        told = f"the gate would be blind: {sight.blind}" if sight.enough else f"{asked}: too few"
        left_out = "" if required else ". It is left out: nothing watches known facts"
        yield Weakness(
            what=f"{what}: {told}{left_out}",
            advice=f"other or more questions ({more})",
            fatal=required,
        )
        return
    usual = PRESETS["balanced"].margin(Role(suite.role))
    if sight.margin > usual:
        yield Weakness(
            what=f"{what}: {sight.items} questions cannot rule out a drop of {pp(usual)}, so its "
            f"margin is {pp(sight.margin)}",
            advice=f"more questions ({more})",
        )
