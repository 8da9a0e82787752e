"""From a model to a folder in which the daemon can start: ask the base, write data and settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from adapters import files
from daemon.onboarding import config_file, known_facts, questions, skill
from daemon.onboarding.asking import Interview
from daemon.onboarding.config_file import ConfigChoice, ServerChoice, SuiteChoice
from daemon.onboarding.model_look import ModelLook
from daemon.onboarding.own_problems import own_problems
from daemon.onboarding.problems import read_problems, some
from daemon.onboarding.questions import FactQuestion
from daemon.onboarding.weaknesses import Weakness, weaknesses
from policies.errors import RequestRefused
from policies.gate.grading import AUTO, GRADERS, check_expected
from policies.gate.limits import PRESETS
from policies.gate.records import ItemResult, Role, SuiteItem
from policies.onboarding.sizing import SuiteSight, sight
from policies.records import Record, content_id
from policies.text import folded

ANSWERS: Final = "init-answers.jsonl"
CONFIG: Final = "config.toml"
FIRST: Final = "first.jsonl"
DATA: Final = "data"
MADE: Final = (
    CONFIG,
    FIRST,
    *(f"{DATA}/{name}.jsonl" for name in (*known_facts.PARTS, *skill.SHARES)),
)
OWN_TOKENS: Final = 48
MOST_QUESTIONS: Final = 2000
SEED: Final = 3

FIRST_FACTS: Final = Path(__file__).resolve().parent / FIRST
"""Six facts of an invented service, in sentences, and unlike what init asks: three facts of an
invented country made a small model take every capital for its own."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user gave: files of questions, of logged requests and of problems (None: palorad's
    own), the grader if it is given, how many problems are asked, and the longest solution.
    """

    folder: Path
    questions: tuple[Path, ...] = ()
    logs: tuple[Path, ...] = ()
    problems: Path | None = None
    grader: str | None = None
    most_problems: int = 1500
    solution_tokens: int = 400
    force: bool = False


class MadeFile(Record):
    """One file that was made: its lines, and what it is for."""

    path: str
    lines: int
    purpose: str


class FirstDay(Record):
    """What was made, what the gate can see, and what is weak."""

    parts: tuple[MadeFile, ...]
    known: int
    questions: int
    left_out: int
    suites: tuple[SuiteChoice, ...]
    weak: tuple[Weakness, ...]

    @property
    def usable(self) -> bool:
        """Whether a candidate could pass the gate as things are."""
        return not any(one.fatal for one in self.weak)


def require_room(wishes: Wishes) -> None:
    """Raise `RequestRefused` with the files of the user's that would be overwritten."""
    there = [name for name in MADE if (wishes.folder / name).exists()]
    if there and not wishes.force:
        raise RequestRefused(
            f"{wishes.folder.resolve()}: {', '.join(there)} would be overwritten; name another "
            "folder with --dir, or add --force"
        )


@dataclass(frozen=True, slots=True)
class QuestionList:
    """What the base is asked: questions, and how many logged requests were left out."""

    questions: list[FactQuestion]
    left_out: int


def to_ask(wishes: Wishes) -> QuestionList:
    """The user's questions, at most `MOST_QUESTIONS` of them at random, then the shipped ones."""
    mine = [one for path in wishes.questions for one in questions.read_questions(path)]
    logs = [questions.read_logs(path) for path in wishes.logs]
    mine = questions.distinct([*mine, *(one for log in logs for one in log.questions)])
    mine = Random(SEED).sample(mine, len(mine))[:MOST_QUESTIONS]
    asked = questions.distinct([*mine, *questions.shipped()])
    return QuestionList(asked, sum(log.left_out for log in logs))


def make(wishes: Wishes, model: ModelLook, server: ServerChoice, interview: Interview) -> FirstDay:
    """Ask, then write everything: nothing is written before all is asked."""
    asked = to_ask(wishes)
    own = wishes.problems is None
    given = own_problems() if wishes.problems is None else read_problems(wishes.problems)
    chosen = some(given, wishes.most_problems, SEED)
    for answer in (answer for one in chosen for answer in one.answers):
        check_expected(wishes.grader or AUTO, answer)
    tokens = OWN_TOKENS if own else wishes.solution_tokens

    known = known_facts.surely_known(_asker(interview, known_facts.TOKENS), asked.questions)
    attempts = skill.attempted(_asker(interview, tokens), chosen)
    facts = known_facts.shared_out(known, known_facts.shares(len(known)))
    laid = skill.laid_out(attempts, "contains" if own else wishes.grader, choosy=own)
    lines = _lines(facts, laid)
    suites = (_reasoning(laid, tokens), _locality(facts["locality"]))
    choice = ConfigChoice(
        model=model.path.resolve(),
        server=server,
        page_port=config_file.free_port(config_file.PAGE_PORT),
        traces=len(lines["skill"]),
        known=len(facts["known-replay"]),
        suites=suites,
    )
    _write(wishes, lines, config_file.config_text(choice))
    return FirstDay(
        parts=tuple(
            MadeFile(path=f"{DATA}/{name}.jsonl", lines=len(rows), purpose=_PURPOSES[name])
            for name, rows in lines.items()
        ),
        known=len(known),
        questions=len(asked.questions),
        left_out=asked.left_out,
        suites=suites,
        weak=tuple(
            weaknesses(known, suites, laid, len(lines["skill"]), len(chosen) - len(attempts))
        ),
    )


_PURPOSES: Final[Mapping[str, str]] = {
    "known-replay": "known facts, replayed in training",
    "locality": "known facts, asked by the gate",
    "known-report": "known facts that nothing reads: for your own report",
    "skill": "solved problems: the probe and replay read them",
    "reasoning-gate": "problems, asked by the gate",
    "reasoning-report": "problems that nothing reads: for your own report",
}


def _asker(interview: Interview, tokens: int) -> known_facts.Ask:
    return lambda stage, prompts, sample: interview.ask(stage, prompts, tokens, sample)


def _lines(
    facts: Mapping[str, Sequence[known_facts.KnownFact]], laid: skill.Skill
) -> dict[str, list[dict[str, object]]]:
    """The lines of every file; nothing that is trained is asked by a suite or in a report."""
    lines = {
        "locality": known_facts.suite_lines(facts["locality"]),
        "known-report": known_facts.suite_lines(facts["known-report"]),
        "reasoning-gate": skill.suite_lines(laid.parts["reasoning-gate"]),
        "reasoning-report": skill.suite_lines(laid.parts["reasoning-report"]),
    }
    asked = {folded(str(row["prompt"])) for rows in lines.values() for row in rows}
    trained = {
        "known-replay": known_facts.replay_lines(facts["known-replay"]),
        "skill": skill.trace_lines(laid),
    }
    for name, rows in trained.items():
        lines[name] = [row for row in rows if folded(str(row["prompt"])) not in asked]
    return {name: lines[name] for name in _PURPOSES}


def _reasoning(laid: skill.Skill, tokens: int) -> SuiteChoice:
    gate = laid.parts["reasoning-gate"]
    return SuiteChoice(
        name="reasoning",
        role=Role.REASONING,
        path=f"{DATA}/reasoning-gate.jsonl",
        grader=laid.grader,
        because=laid.because,
        max_tokens=tokens,
        sight=_sight(
            Role.REASONING,
            [one.item for one in gate],
            [one.result(laid.grader) for one in gate],
            laid.grader,
        ),
    )


def _locality(facts: Sequence[known_facts.KnownFact]) -> SuiteChoice:
    items = [
        SuiteItem(
            id=content_id(fact.question.prompt),
            prompt=fact.question.prompt,
            answer=fact.answers[0],
            also=fact.answers[1:],
            stratum=fact.question.family,
        )
        for fact in facts
    ]
    results = [
        ItemResult(id=item.id, correct=True, output=fact.said)
        for item, fact in zip(items, facts, strict=True)
    ]
    return SuiteChoice(
        name="known facts",
        role=Role.LOCALITY,
        path=f"{DATA}/locality.jsonl",
        grader="contains",
        because="the base answers in sentences of its own",
        max_tokens=known_facts.TOKENS,
        sight=_sight(Role.LOCALITY, items, results, "contains"),
    )


def _sight(
    role: Role, items: Sequence[SuiteItem], results: Sequence[ItemResult], grader: str
) -> SuiteSight:
    return sight(role, items, results, PRESETS["balanced"], grader, GRADERS[grader])


def _write(
    wishes: Wishes, lines: Mapping[str, Iterable[Mapping[str, object]]], config: str
) -> None:
    """Every file; the configuration last, so that it names only what is there."""
    folder = wishes.folder
    require_room(wishes)
    files.make_folder(folder / DATA)
    for name, rows in lines.items():
        files.write_text(folder / DATA / f"{name}.jsonl", _jsonl(rows))
    files.write_bytes(folder / FIRST, FIRST_FACTS.read_bytes())
    files.write_text(folder / CONFIG, config)


def _jsonl(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
