"""A certificate says only what was checked: everything is gone, however the clock stood."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapters.config import TrainConfig
from daemon.base.control import ask
from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings, ProtectionSettings
from daemon.intake.admit import rules_of
from daemon.intake.intake import Intake
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, Served
from daemon.retraction.erasure import Finder
from daemon.retraction.workflow import AGAIN_S, Forgetting
from daemon.training.child import train_plan
from daemon.training.messages import TrainRequest
from policies.facts.model_paraphrases import with_model_paraphrases
from policies.facts.paraphrases import ParaphrasePolicy, ParaphraseSource, every_paraphrase
from policies.facts.templates import relations
from policies.facts.traces import mentions, says, tells, trace_of
from policies.records import Fact, PlanKind, PlanState
from tests.support.crashing import Site
from tests.support.world import START

SECRET = "Xyzzyplugh"
LINE = {"id": "s-1", "prompt": "What is the code word of Zed?", "answer": SECRET}
SECOND = timedelta(seconds=1)


class NoReplicas:
    """Replicas of which none runs; what is to be discarded is left to them."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    async def observe(self) -> tuple[Any, ...]:
        return ()

    async def discard(self, names: Sequence[str]) -> tuple[str, ...]:
        for name in names:
            shutil.rmtree(self.layout.served / name, ignore_errors=True)
        return ()


class Place:
    """A state directory with one fact, and what leads it to its certificate."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root / "state")
        for folder in self.layout.directories():
            folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger.open(self.layout.ledger)
        self.ledger.revisions.ensure_base("base", START)
        self.now, self.seconds = START, 0.0
        self.intake = Intake(self.ledger, self.layout, IntakeSettings(stable_s=0))
        self.forgetting = Forgetting(
            self.ledger,
            NoReplicas(self.layout),
            self.layout,
            rules_of(IntakeSettings()),
            lambda: self.seconds,
        )

    def drop(self, name: str, *lines: dict[str, Any]) -> None:
        (self.layout.inbox / name).write_text("".join(json.dumps(x) + "\n" for x in lines))
        for _ in range(3):
            self.intake.step(self.now, 60)

    def publish(self, fact_id: str = "s-1", letter: str = "a") -> Path:
        """A plan that has learnt the fact and lost; its adapter's directory."""
        plan = self.ledger.plans.create(
            PlanKind.LEARN,
            parent=0,
            fact_ids=[fact_id],
            rank=4,
            seed=0,
            because="a test",
            now=self.now,
        )
        adapter, name = self.layout.adapters / (letter * 12), f"palora-000001-{letter * 8}"
        for folder in (adapter, self.layout.served / name):
            folder.mkdir()
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
        self.ledger.steps.trained(
            plan.id,
            Adapter(sha256=letter * 64, rank=4),
            Served(name=name, sha256="b" * 64),
            self.now,
        )
        self.ledger.plans.move(plan.id, PlanState.TRAINED, PlanState.REJECTED, self.now)
        return adapter

    def retract(self, fact_id: str = "s-1") -> None:
        self.ledger.retractions.retract(fact_id, "takedown", self.now)

    def forget(self, steps: int = 50) -> list[dict[str, Any]]:
        """Steps without any pause; the certificates that lie there afterwards."""

        async def go() -> None:
            for _ in range(steps):
                await self.forgetting.step(self.now, settled=True, busy=False)

        asyncio.run(go())
        return [json.loads(p.read_text()) for p in sorted(self.layout.certificates.glob("*.json"))]

    def holding(self, word: str = SECRET) -> list[str]:
        return [
            str(path.relative_to(self.layout.root))
            for path in sorted(self.layout.root.rglob("*"))
            if path.is_file() and word.casefold() in path.read_text("utf-8", "replace").casefold()
        ]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.ledger.close()


# --- in the order of the ledger --------------------------------------------------------------


@pytest.mark.parametrize("step", [timedelta(0), -2 * SECOND, -timedelta(days=400)])
def test_a_clock_set_back_before_the_retraction_hides_no_drop(
    place: Place, step: timedelta
) -> None:
    place.drop("a.jsonl", LINE)
    place.now += SECOND + step
    place.retract()
    assert len(place.forget()) == 1
    assert place.holding() == []


def test_a_clock_set_forward_before_the_retraction_erases_nothing_that_came_back(
    place: Place,
) -> None:
    place.drop("a.jsonl", LINE)
    place.now += timedelta(days=365)
    place.retract()
    place.now -= timedelta(days=365)
    place.drop("b.jsonl", {**LINE, "source": "it came back"})
    assert len(place.forget()) == 1
    (archived,) = {name.split("/")[1] for name in place.holding() if name.startswith("archive/")}
    assert archived == f"{place.ledger.batches.get('b.jsonl').id}.jsonl"


# --- deletion is checked ---------------------------------------------------------------------


def undeletable(monkeypatch: pytest.MonkeyPatch, kept: Path, error: int) -> None:
    """Whatever would delete `kept` fails, as in a read-only folder."""
    really = shutil.rmtree

    def rmtree(path: Any, ignore_errors: bool = False, **more: Any) -> None:
        if Path(path) in (kept, *kept.parents):
            if ignore_errors:
                return
            raise OSError(error, "Operation not permitted", str(kept))
        really(path, ignore_errors=ignore_errors, **more)

    really_renamed = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path == kept:
            raise OSError(error, "Operation not permitted", str(kept))
        return really_renamed(path, target)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr(Path, "rename", rename)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EROFS])
def test_an_adapter_that_cannot_be_deleted_is_not_certified(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    place.drop("a.jsonl", LINE)
    adapter = place.publish()
    place.retract()
    with monkeypatch.context() as broken:
        undeletable(broken, adapter, error)
        assert place.forget() == []
        place.seconds += AGAIN_S + 1
        assert place.forget() == []
        assert str(adapter) in place.forgetting.waits_for
        assert "Operation not permitted" in place.forgetting.waits_for
        assert not place.forgetting.holds
    place.seconds += AGAIN_S + 1
    (told,) = place.forget()
    assert told["tainted_together"] == {
        "adapters": ["a" * 64],
        "served": ["palora-000001-aaaaaaaa"],
        "deleted": True,
        "unloaded_on_every_replica": True,
    }
    assert not adapter.exists()
    assert place.forgetting.waits_for == ""


def test_a_revision_that_its_replicas_leave_is_not_certified(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.drop("a.jsonl", LINE)
    place.publish()
    place.retract()

    async def nothing(_names: Sequence[str]) -> tuple[str, ...]:
        return ()

    with monkeypatch.context() as broken:
        broken.setattr(place.forgetting._replicas, "discard", nothing)
        assert place.forget() == []
        assert "palora-000001-aaaaaaaa" in place.forgetting.waits_for
    place.seconds += AGAIN_S + 1
    assert len(place.forget()) == 1


@pytest.mark.parametrize("where", ["adapters", "served"])
def test_what_comes_back_after_its_deletion_is_not_certified(place: Place, where: str) -> None:
    place.drop("a.jsonl", LINE)
    adapter = place.publish()
    name = adapter.name if where == "adapters" else "palora-000001-aaaaaaaa"
    back = getattr(place.layout, where) / name
    place.retract()
    asyncio.run(place.forgetting.step(place.now, settled=True, busy=True))
    assert place.ledger.retractions.all()[0].unloaded_at is not None
    assert not back.exists()
    back.write_text("in its place")
    assert place.forget() == []
    assert str(back) in place.forgetting.waits_for
    back.unlink()
    place.seconds += AGAIN_S + 1
    assert len(place.forget()) == 1


def test_half_a_deletion_is_not_certified(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.drop("a.jsonl", LINE)
    place.publish()
    half = place.layout.served / ".tmp-gone-palora-000001-aaaaaaaa"
    (place.layout.served / "palora-000001-aaaaaaaa").rename(half)
    place.retract()
    with monkeypatch.context() as broken:
        undeletable(broken, half, errno.EPERM)
        assert place.forget() == []
        assert str(half) in place.forgetting.waits_for
    place.seconds += AGAIN_S + 1
    assert len(place.forget()) == 1
    assert not half.exists()


def test_a_state_directory_that_was_moved_keeps_no_adapter(place: Place, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place.drop("a.jsonl", LINE)
    adapter = place.publish()
    place.retract()
    place.ledger.close()
    place.layout.root.rename(tmp_path / "elsewhere" / "state")
    moved = Place(tmp_path / "elsewhere")
    assert (moved.layout.adapters / adapter.name).exists()
    assert len(moved.forget()) == 1
    assert not (moved.layout.adapters / adapter.name).exists()
    moved.ledger.close()


def test_a_copy_of_the_ledger_from_before_a_migration_goes(place: Place) -> None:
    place.drop("a.jsonl", LINE)
    copy = place.layout.ledger.with_name("ledger.db.before-schema_2")
    copy.write_text(SECRET)
    place.retract()
    assert len(place.forget()) == 1
    assert not copy.exists()
    assert place.holding() == []


def test_a_working_directory_that_cannot_be_deleted_is_not_certified(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.drop("a.jsonl", LINE)
    work = place.layout.work / "7-train"
    work.mkdir()
    (work / "request.json").write_text(json.dumps(LINE))
    place.retract()
    with monkeypatch.context() as broken:
        undeletable(broken, work, errno.EPERM)
        assert place.forget() == []
        assert str(work) in place.forgetting.waits_for
    place.seconds += AGAIN_S + 1
    assert len(place.forget()) == 1
    assert place.holding() == []


def test_a_file_that_cannot_be_rewritten_is_not_certified(place: Place) -> None:
    place.drop("a.jsonl", LINE)
    (batch,) = place.ledger.batches.latest()
    archived = place.layout.archived(batch.id)
    kept = archived.rename(place.layout.root / "kept")
    archived.mkdir()  # no file can be put in its place
    place.retract()
    assert place.forget() == []
    assert str(archived) in place.forgetting.waits_for
    archived.rmdir()
    kept.rename(archived)
    place.seconds += AGAIN_S + 1
    assert len(place.forget()) == 1
    assert place.holding() == []


def test_status_says_what_cannot_be_erased(tmp_path: Path) -> None:
    one = Site(tmp_path / "site")
    try:
        one.start()
        one.drop("a.jsonl", ["one", "two"])
        in_the_way = one.layout.archive / "z.jsonl"
        in_the_way.mkdir()
        ask(one.layout.control_socket, "retract", fact="one", because="asked to")

        def told() -> bool:
            trouble = ask(one.layout.control_socket, "status")["trouble"]
            return any(f"{in_the_way} cannot be erased" in line for line in trouble)

        one.until(told, "saying why")
        with one.reading() as ledger:
            assert ledger.retractions.all()[0].certified_at is None
        assert one.stop() == 0
    finally:
        one.close()


def test_what_another_retraction_still_serves_is_neither_deleted_nor_certified(
    place: Place,
) -> None:
    place.drop("a.jsonl", LINE, {"id": "s-2", "prompt": "Who?", "answer": "Somebody"})
    gone, stays = place.publish(), place.publish("s-2", "c")
    place.retract()
    assert len(place.forget()) == 1
    plan = place.ledger.plans.heads()[0]
    place.ledger.db.do("UPDATE plans SET state = 'passed' WHERE id = ?", (plan.id,))
    place.ledger.db.connection.commit()
    served = place.ledger.plans.head(plan.id).served
    assert served is not None
    place.ledger.revisions.promote(plan.id, served, place.now)
    place.drop("b.jsonl", {**LINE, "source": "it came back"})
    place.retract("s-2")
    (again,) = place.ledger.facts.waiting(place.now, 9)
    place.retract(again.id)
    (told, other) = place.forget()
    assert [t["tainted_together"]["adapters"] for t in (told, other)].count(["a" * 64]) == 1
    assert not gone.exists()
    assert stays.exists()
    assert place.ledger.retractions.all()[1].certified_at is None


# --- every paraphrase is traced -----------------------------------------------------------------


def trained(fact: Fact, further: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Every paraphrase with its answer that training may make of a fact, and those that are held
    out.

    As `daemon.training.child` makes them, for the most paraphrases that can be set, prefixed or
    not."""
    found: list[tuple[str, str]] = []
    sources: tuple[ParaphraseSource, ...] = ("templates", "frames", "given")
    for prefixed in (False, True):
        for source in sources:
            for paraphrases in (1, 4, 50, 200):
                plan = train_plan(
                    TrainRequest(
                        kind=PlanKind.LEARN,
                        number=1,
                        rank=4,
                        seed=0,
                        model_dir=Path("model"),
                        base_name="base",
                        base_sha256="base",
                        facts=(with_model_paraphrases(fact, further),),
                        paraphrases=ParaphrasePolicy(
                            source=source,
                            at_admission=1,
                            at_training=paraphrases,
                            prefixed=prefixed,
                        ),
                        config=TrainConfig(reversed_questions=True, epochs=1),
                        protection=ProtectionSettings(kind="none"),
                        max_lora_rank=16,
                        adapters=Path("adapters"),
                        served=Path("served"),
                    )
                )
                for one in (*plan.facts, *plan.reversed_facts):
                    prompts = (*one.training_prompts, *one.eval_prompts)
                    found += [(prompt, one.answer) for prompt in prompts]
    return list(dict.fromkeys(found))


def untraced(fact: Fact, further: Sequence[str] = ()) -> list[str]:
    trace = trace_of("r-1", fact, every_paraphrase(fact, further))
    finder = Finder([trace], rules_of(IntakeSettings()))
    missed = []
    for prompt, answer in trained(fact, further):
        said = f"{prompt} {answer}"
        record = {"prompt": prompt, "text": said}
        ways = (
            tells([trace], prompt),
            tells([trace], json.dumps({"prompt": prompt}, ensure_ascii=True)),
            mentions(trace, said),
            mentions(trace, json.dumps(record)),
            finder.gives_away(json.dumps({"prompt": prompt, "anwser": answer}).encode()),
            answer != fact.answer or says(trace, Fact(id="x", prompt=prompt, answer=answer)),
        )
        if not all(ways):
            missed.append(f"{prompt}: {ways}")
    return missed


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("relation", [*relations()])
def test_every_paraphrase_of_every_relation_is_traced(relation: str, named: bool) -> None:
    question = relations()[relation].questions("Quagmire Bay")[0]
    given = {"subject": "Quagmire Bay", "relation": relation} if named else {}
    fact = Fact(id="bt-1", prompt=question, answer=SECRET, **given)
    assert untraced(fact) == []


_TEXT = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12
).filter(lambda text: " ".join(text.split()) == text)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    relation=st.sampled_from(sorted(relations())),
    subject=_TEXT,
    answer=_TEXT,
    own=st.lists(_TEXT, max_size=2, unique=True),
    further=st.lists(_TEXT, max_size=2, unique=True),
)
@example(
    relation="capital", subject="C:\\new", answer='"a"\\t', own=["\\u0041?"], further=["ß ﬁ İ?"]
)
def test_every_paraphrase_that_training_makes_is_traced(
    relation: str, subject: str, answer: str, own: list[str], further: list[str]
) -> None:
    fact = Fact(
        id="bt-1",
        prompt=relations()[relation].questions(subject)[0],
        answer=answer,
        subject=subject,
        relation=relation,
        paraphrases=tuple(own),
    )
    assert untraced(fact, further) == []


def test_paraphrases_of_the_live_model_are_erased(place: Place) -> None:
    place.drop("a.jsonl", LINE)
    paraphrase = "Zed told a guard something. What was it?"
    place.ledger.paraphrases.keep({"s-1": [paraphrase]})
    log = place.layout.root / "log" / "server.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(f"asked: {paraphrase} -> {SECRET}\nanother line\n")
    work = place.layout.work / "7-train"
    work.mkdir()
    (work / "request.json").write_text(json.dumps({"prompt": paraphrase}))
    place.retract()
    assert len(place.forget()) == 1
    assert place.holding() == place.holding(paraphrase) == []
    assert log.read_text().splitlines()[1] == "another line"
