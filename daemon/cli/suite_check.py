"""What `palorad doctor` and `config check` say of the gate's suites: can each of them fail?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from daemon.gate.answer_store import AnswerStore
from daemon.gate.messages import SuiteSource
from daemon.gate.suite_run import open_suite
from daemon.gate.suites import Suite, has_chat_template, refuse_trained, trained_questions
from policies.errors import PaloradError
from policies.gate.baselines import PAIRED
from policies.gate.figures import percent, pp
from policies.gate.grading import normalise
from policies.gate.records import Role
from policies.gate.sequential import Design, items_to_pass

if TYPE_CHECKING:
    from daemon.config.gate import SuiteSettings
    from daemon.config.settings import Settings

_SAME: Final = 0.9
_LACKING: Final = {
    Role.REASONING: "no candidate can pass without one",
    Role.LOCALITY: "nothing watches the facts that the base knows",
}


class CheckResult(NamedTuple):
    """One thing that was checked; `advice` says what to do when it is not well, or what to look at
    although it is."""

    what: str
    well: bool
    advice: str = ""


def gate_findings(settings: Settings) -> Iterator[CheckResult]:
    """Every suite, whether it can be asked, whether it can pass and whether it can fail."""
    trained = trained_questions(settings.trained_on)
    chat = has_chat_template(settings.model.path)
    for suite in settings.gate.suites:
        yield _suite(settings, suite, trained, chat=chat)
    judge = settings.gate.judge
    if judge.url is not None and judge.url.removesuffix("/v1") in settings.server.urls:
        yield CheckResult(
            f"gate.judge.url {judge.url}",
            True,
            "the server that is judged would grade itself; use another endpoint",
        )
    if not settings.gate.earlier_facts:
        yield CheckResult(
            "gate.earlier_facts 0",
            True,
            "nothing watches the facts that earlier batches taught; set it to some hundreds",
        )
    there = {suite.role for suite in settings.gate.suites}
    for role, lacking in _LACKING.items():
        if role not in there:
            yield CheckResult(
                f"no gate suite of the role {role.value!r}",
                True,
                f'{lacking}; add [[gate.suites]] with role = "{role.value}"',
            )


def _suite(
    settings: Settings, suite: SuiteSettings, trained: Mapping[str, str], *, chat: bool
) -> CheckResult:
    try:
        loaded, _ = open_suite(SuiteSource(**suite.model_dump()), chat=chat)
        refuse_trained(loaded, trained)
        measured = AnswerStore(settings.layout.answers).cards(loaded.fingerprint)
    except PaloradError as error:
        return CheckResult(f"gate suite {suite.name!r}", False, str(error))
    what = f"gate suite {suite.name!r}, {len(loaded.items)} questions"
    found = list(_doubts(settings, suite, loaded))
    if measured:
        card = measured[-1]
        what += f", graded by {card.grader!r}" + (f" ({card.because})" if card.because else "")
        found += [f"it was blind: {card.blind}"] if card.blind else []
    return CheckResult(what, True, "; ".join(found))


def _doubts(settings: Settings, suite: SuiteSettings, loaded: Suite) -> Iterator[str]:
    """What can be seen of the questions alone."""
    if loaded.role is Role.DRIFT:
        if settings.gate.drift is None:
            yield "it can never fail: it is only reported; set gate.drift for a limit"
        return
    if loaded.role not in PAIRED:
        return
    limits = settings.gate.limits
    margin = suite.margin or limits.margin(loaded.role)
    needed = items_to_pass(Design(margin, limits.alpha, limits.beta), 0.0)
    if needed > len(loaded.items):
        yield (
            f"it can never pass: a margin of {pp(margin)} takes at least {needed} items; "
            "add items or set a larger margin"
        )
    (said, count), *_ = Counter(normalise(item.answer) for item in loaded.items).most_common(1)
    if count > _SAME * len(loaded.items):
        yield (
            f"it can hardly fail: {percent(count / len(loaded.items))} of its answers are "
            f"{said!r}; use items whose answers differ"
        )
    longest = max(len(normalise(item.answer).split()) for item in loaded.items)
    if longest > loaded.max_tokens:
        yield f"its longest answer has {longest} words and max_tokens is {loaded.max_tokens}"
