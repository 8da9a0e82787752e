"""What each leased child is asked for, put together from the ledger and the settings."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from daemon.children.request import Rows
from daemon.config.settings import Settings
from daemon.gate.messages import (
    EvaluationRequest,
    JudgeSource,
    JudgingRequest,
    ServedModel,
    SuiteSource,
)
from daemon.gate.suites import has_chat_template
from daemon.ledger.ledger import Ledger
from daemon.ledger.meta import BASE
from daemon.ledger.records import PlanHead
from daemon.training.messages import ProbeReport, ProbeRequest, TrainRequest
from policies.batching import Batching
from policies.errors import StateConflict
from policies.facts.model_paraphrases import with_model_paraphrases
from policies.gate.grading import AUTO, JUDGE, grade
from policies.gate.sampling import draw_earlier
from policies.planning import REBUILDS, Limits, Step
from policies.records import Fact, Outline, Revision, content_id

PROBE: Final = "probe"
EARLIER_POOL: Final = 4000


def limits_of(settings: Settings) -> Limits:
    """The settings that planning depends on."""
    train = settings.train
    return Limits(
        rank=train.rank,
        rank_budget=train.rank_budget,
        lineage=train.lineage,
        retrain_at=train.retrain_at,
        max_rank=settings.server.max_lora_rank,
        max_facts=train.max_facts,
        attempts=train.attempts,
        seed=train.seed,
        batching=Batching(
            min_facts=train.min_facts, max_wait_s=train.max_wait_s, quiet=train.quiet_hours
        ),
    )


# --- probe -----------------------------------------------------------------------------------


def probe_request(settings: Settings) -> ProbeRequest:
    """A probe of the configured base."""
    return ProbeRequest(
        model_dir=settings.model.path,
        probes=settings.layout.probes,
        experts=settings.layout.root / "expert",
        settings=settings.probe,
        protection=settings.protection,
    )


def probe_key(settings: Settings) -> str:
    """Changes when the model's files, the probe's settings or the protection do: then the probe is
    looked at again.
    """
    seen = [
        (path.name, stat.st_size, stat.st_mtime_ns)
        for path in sorted(settings.model.path.glob("*"))
        if path.is_file() and (stat := path.stat())
    ]
    return content_id(
        str(settings.model.path),
        json.dumps(seen),
        settings.probe.model_dump_json(),
        settings.protection.model_dump_json(),
    )


def remembered_probe(ledger: Ledger, settings: Settings) -> ProbeReport | None:
    """The probe in use, if it still is the one of this model and these settings."""
    text = ledger.meta.get(PROBE)
    if not text:
        return None
    try:
        kept = json.loads(text)
        report = _placed(ProbeReport.model_validate(kept["report"]), settings.state_dir)
    except (ValueError, KeyError, ValidationError):
        return None
    there = report.probe.is_dir() and report.served_dir.is_dir()
    return report if there and kept["key"] == probe_key(settings) else None


def _placed(report: ProbeReport, state_dir: Path) -> ProbeReport:
    """With the paths below the state directory, which are stored relative to it, as they are now.

    Others are absolute, and joining leaves them so.
    """
    places = {"probe": state_dir / report.probe, "served_dir": state_dir / report.served_dir}
    return report.model_copy(update=places)


def remember_probe(ledger: Ledger, settings: Settings, report: ProbeReport) -> None:
    """Use this probe from now on; raises `StateConflict` where revisions stand on another base."""
    known = ledger.meta.get(BASE)
    if known not in (None, report.served_sha256) and ledger.revisions.all(2)[-1].number:
        raise StateConflict(
            f"{report.served_dir} is another model than the one the revisions were trained on: "
            "put the former one back, or start with another state_dir"
        )
    ledger.meta.remember(BASE, report.served_sha256)
    inside = settings.state_dir
    below = {
        name: str(path.relative_to(inside))
        for name, path in (("probe", report.probe), ("served_dir", report.served_dir))
        if path.is_relative_to(inside)
    }
    kept = {"key": probe_key(settings), "report": report.model_dump(mode="json") | below}
    ledger.meta.remember(PROBE, json.dumps(kept))


def forget_probe(ledger: Ledger) -> None:
    """Have the probe looked at again: it turned out to belong to other weights."""
    ledger.meta.remember(PROBE, "")


def served_dir(ledger: Ledger, settings: Settings) -> Path | None:
    """The model that is served; None while an SVF expert is still to be fitted."""
    if settings.probe.serve == "base":
        return settings.model.path
    probe = remembered_probe(ledger, settings)
    return None if probe is None else probe.served_dir


# --- train and evaluate ----------------------------------------------------------------------


async def write_request(
    ledger: Ledger,
    settings: Settings,
    plan: PlanHead,
    step: Step,
    probe: ProbeReport,
    now: datetime,
    write: Callable[[BaseModel, Rows], None],
) -> None:
    """Have `write` write what the child of a step is asked for, in a thread with its own reader.

    A request holds thousands of facts, that of a rebuild all of them: they are read while they are
    written, and take longer than the loop may stand still.
    """

    def build(reader: Ledger) -> None:
        if step is Step.TRAIN:
            write(*train_request(reader, settings, plan, probe))
        else:
            write(*evaluate_request(reader, settings, plan, probe, now))

    def read() -> None:
        with Ledger.open(ledger.db.path, readonly=True) as reader:
            reader.db.read_through()
            build(reader)

    if ledger.db.path.exists():
        await asyncio.to_thread(read)
    else:  # a ledger in memory has no other reader
        build(ledger)


# --- train -----------------------------------------------------------------------------------


def train_request(
    ledger: Ledger, settings: Settings, plan: PlanHead, probe: ProbeReport
) -> tuple[TrainRequest, Rows]:
    """One adapter that goes on from what the plan's parent serves, or on top or in place of it."""
    rows = {
        "facts": trained_facts(ledger, ledger.planning.each_to_learn(plan)),
        "replay": trained_facts(ledger, ledger.planning.to_replay(plan)),
    }
    kept = [s for s in ledger.revisions.get(plan.parent).lineage if s not in plan.replaces]
    goes_on = () if plan.kind in REBUILDS else plan.replaces
    request = TrainRequest(
        kind=plan.kind,
        number=ledger.revisions.all(1)[-1].number + 1,
        rank=plan.rank,
        seed=plan.seed,
        model_dir=probe.served_dir,
        base_name=settings.model.name,
        base_sha256=probe.served_sha256,
        config=settings.train.config,
        processes=settings.train.processes,
        paraphrases=settings.paraphrase_policy,
        known=settings.train.replay.known,
        reasoning=settings.train.replay.reasoning,
        lineage=tuple(map(settings.layout.adapter, kept)),
        start=tuple(map(settings.layout.adapter, goes_on)),
        lineage_sha256=tuple(kept),
        probe=None if settings.protection.kind == "none" else probe.probe,
        protection=settings.protection,
        max_lora_rank=settings.server.max_lora_rank,
        adapters=settings.layout.adapters,
        served=settings.layout.served,
        records=settings.layout.records,
    )
    return request, rows


def trained_facts(ledger: Ledger, ids: Iterable[str]) -> Iterator[str]:
    """Facts as JSON, with the paraphrases that the live model gave."""
    for piece in ledger.facts.bodies(ids):
        further = ledger.paraphrases.of([name for name, _ in piece])
        for name, body in piece:
            if name not in further:
                yield body
                continue
            fact = with_model_paraphrases(Fact.model_validate_json(body), further[name])
            yield fact.model_dump_json(exclude_defaults=True)


# --- evaluate --------------------------------------------------------------------------------


def evaluate_request(
    ledger: Ledger, settings: Settings, plan: PlanHead, probe: ProbeReport, now: datetime
) -> tuple[JudgingRequest, Rows]:
    """Judge the candidate, which the first replica has loaded, as it would be served."""
    server = settings.server
    evaluation, rows = _evaluation(ledger, settings, plan, probe, now)
    request = JudgingRequest(
        evaluation=evaluation,
        url=server.urls[0],
        admin_key_file=server.admin_key_file or settings.layout.admin_key,
        user_key_file=server.user_key_file,
        request_timeout_s=server.request_timeout_s,
        judge=_judge(settings),
        answers=settings.layout.answers,
        model_dir=probe.served_dir,
    )
    return request, {f"evaluation.{field}": items for field, items in rows.items()}


def _judge(settings: Settings) -> JudgeSource | None:
    judge = settings.gate.judge
    return JudgeSource(**judge.model_dump()) if judge.url and judge.model else None


def _evaluation(
    ledger: Ledger, settings: Settings, plan: PlanHead, probe: ProbeReport, now: datetime
) -> tuple[EvaluationRequest, Rows]:
    """What to ask of a candidate, and of whom else.

    A rebuild is asked about the facts it was trained on, at most `train.max_facts` of them.
    Candidates that build on the same `gate.revisions_per_draw` revisions are asked the suites'
    items in the same order.
    """
    if plan.served is None:
        raise StateConflict(f"plan {plan.id} has published nothing to judge")
    gate, target = settings.gate, ledger.revisions.target()
    new = ledger.planning.to_learn(plan, settings.train.max_facts)
    known = ledger.knowledge.known_ids(target.lineage, now, EARLIER_POOL)
    earlier = _earlier(ledger, known, new, gate.earlier_facts, plan.id)
    superseded = _superseded(ledger, settings, plan, target, now)
    rows = {
        "facts": _bodies(ledger, new),
        "earlier": _of_batches(ledger, earlier),
        "standing": _bodies(ledger, known),
    }
    request = EvaluationRequest(
        engine=settings.server.kind,
        base=ServedModel(name=settings.model.name, sha256=probe.served_sha256),
        live=_served(target),
        candidate=ServedModel(name=plan.served.name, sha256=plan.served.sha256),
        order=f"{probe.served_sha256} {target.number // gate.revisions_per_draw}",
        suites=tuple(SuiteSource(**suite.model_dump()) for suite in gate.suites),
        trained_on=settings.trained_on,
        earlier_complete=len(earlier) < gate.earlier_facts,
        superseded=superseded,
        superseded_complete=len(superseded) < gate.earlier_facts,
        unlearn=_to_unlearn(ledger, settings) if plan.kind in REBUILDS else (),
        chat=has_chat_template(probe.served_dir),
        limits=gate.limits,
        concurrency=settings.server.concurrency,
        chunk=gate.chunk,
        facts_grader=gate.facts_grader,
        facts_max_tokens=gate.facts_max_tokens,
        paraphrases=gate.held_out_paraphrases,
        aa_sample=gate.aa_sample,
    )
    return request, rows


def _to_unlearn(ledger: Ledger, settings: Settings) -> tuple[Fact, ...]:
    """Retracted facts that are served until now, in the paraphrases in which they were learnt."""
    policy, facts = settings.paraphrase_policy, ledger.retractions.to_forget()
    by_model = ledger.paraphrases.of([fact.id for fact in facts])
    return tuple(policy.for_unlearning(fact, by_model.get(fact.id, ())) for fact in facts)


def _served(revision: Revision) -> ServedModel | None:
    if revision.sha256 is None:
        return None
    return ServedModel(name=revision.served_name, sha256=revision.sha256)


def _superseded(
    ledger: Ledger, settings: Settings, plan: PlanHead, target: Revision, now: datetime
) -> tuple[Fact, ...]:
    """Facts learnt before that gave way to others; without those whose new answer says the old."""
    gate = settings.gate
    # The lenient grader sees the old answer in more new ones: what is in doubt is not asked.
    grader = "contains" if gate.facts_grader in (AUTO, JUDGE) else gate.facts_grader
    pairs = ledger.knowledge.superseded_ids(target.lineage, plan.id, now, gate.earlier_facts)
    known = {
        fact.id: fact for fact in ledger.facts.find(ids=[name for pair in pairs for name in pair])
    }
    return tuple(
        known[old] for old, new in pairs if not grade(grader, known[new].answer, known[old].answer)
    )


def _earlier(
    ledger: Ledger, known: Sequence[str], new: Sequence[str], size: int, seed: int
) -> dict[str, str]:
    """A sample of the known facts, in the order drawn, each with its batch."""
    pool: defaultdict[str, list[Outline]] = defaultdict(list)
    for batch, fact in ledger.facts.outlines(known):
        pool[batch].append(fact)
    drawn = draw_earlier(pool, [fact for _, fact in ledger.facts.outlines(new)], size, seed)
    return {fact.id: batch for batch, fact in drawn}


def _of_batches(ledger: Ledger, batches: Mapping[str, str]) -> Iterator[str]:
    for piece in ledger.facts.bodies(batches):
        yield from (f"[{json.dumps(batches[name])}, {body}]" for name, body in piece)


def _bodies(ledger: Ledger, ids: Iterable[str]) -> Iterator[str]:
    for piece in ledger.facts.bodies(ids):
        yield from (body for _, body in piece)
