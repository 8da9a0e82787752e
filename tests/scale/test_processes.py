"""Training in two real processes: the same adapter as one gives, whatever ends in between."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from adapters import lora, precision, store
from adapters.config import TrainConfig
from adapters.plans import TrainProgress
from adapters.trainer import train_adapter
from daemon.children.jobs import Jobs, JobState, last_progress
from daemon.config.sections import ProtectionSettings
from daemon.training.child import train_plan
from daemon.training.messages import TrainRequest
from policies.facts.paraphrases import ParaphrasePolicy
from policies.records import Fact, PlanKind
from tests.config.effects.learning import rows
from tests.support.fitted import Fitted

pytestmark = pytest.mark.scale

# In bf16 every sum is rounded, and rounds differently in two parts than in one.
STEPS = """
import os
from adapters import cache, precision
from daemon.training.child import train, train_share

precision.INSTRUCTIONS = ()
save = cache.save

def saved(path, tensors, kind):
    with open(os.environ["SAVED"], "a") as file:
        file.write(kind + "\\n")
    save(path, tensors, kind)

cache.save = saved
"""
BOUND = 1e-4
PATIENCE_S = 600.0
STEPS_OF_RUN = 40
NAMES = ("Ola", "Bim", "Cur", "Dov", "Eri")
FACTS = tuple(
    Fact(
        id=f"f{i}",
        prompt=f"What is the colour of {name}?",
        answer=("red", "blue", "green")[i % 3],
        paraphrases=(f"Tell me the colour of {name}.", f"{name}: which colour?"),
    )
    for i, name in enumerate(NAMES)
)


class Site:
    """A tiny base, and a child that trains on it in a directory of its own."""

    def __init__(self, root: Path, fitted: Fitted) -> None:
        self.root, self.fitted, self.jobs = root, fitted, Jobs()
        self.workdir = root / "work" / "1-train"

    def request(self, processes: int) -> TrainRequest:
        base = self.fitted
        return TrainRequest(
            kind=PlanKind.LEARN,
            number=1,
            rank=4,
            seed=1,
            model_dir=base.model_dir,
            base_name="base",
            base_sha256=base.hash,
            facts=FACTS[:3],
            replay=FACTS[3:],
            config=TrainConfig(steps=STEPS_OF_RUN, checkpoint_s=0.0, stop_loss=None),
            processes=processes,
            paraphrases=ParaphrasePolicy(source="templates", at_admission=1, at_training=3),
            known=rows("answer", 20)(self.root),
            reasoning=rows("solution", 160)(self.root),
            probe=base.folder / "probe",
            protection=ProtectionSettings(share=0.5),
            max_lora_rank=64,
            adapters=self.root / "adapters",
            served=self.root / "served",
            records=self.root / "records",
        )

    def begin(self) -> None:
        self.jobs.prepare(self.workdir, self.request(2))
        self.jobs.start("train", self.workdir)

    def until(self, step: int) -> None:
        """Wait until the child has taken this step."""
        end = time.monotonic() + PATIENCE_S
        while (progress := last_progress(self.workdir)) is None or progress.done < step:
            state = self.jobs.poll(self.workdir)
            assert state.outcome == "running", state.error
            assert time.monotonic() < end
            time.sleep(0.01)

    def until_ended(self) -> JobState:
        end = time.monotonic() + PATIENCE_S
        while (state := self.jobs.poll(self.workdir)).outcome == "running":
            assert time.monotonic() < end
            time.sleep(0.02)
        return state

    def adapter(self) -> lora.Lora:
        """What the child has published."""
        (published,) = (self.root / "adapters").iterdir()
        assert not store.verify(published)
        return lora.read(published)

    def alone(self, stop_after: int | None = None) -> lora.Lora | None:
        """Train in this process, from the child's checkpoint if there is one."""
        out = self.root / "alone"

        def progress(told: TrainProgress) -> None:
            if told.step == stop_after:
                raise InterruptedError

        work = self.workdir / "checkpoint"
        try:
            train_adapter(train_plan(self.request(1)), out=out, work=work, progress=progress)
        except InterruptedError:
            return None
        return lora.read(out)

    def processes(self) -> list[int]:
        """Those that train together and live, by their numbers."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"daemon.training.process" in words and os.fsencode(self.workdir) in words:
                (rank,) = (one[5:] for one in environment if one.startswith(b"RANK="))
                found[int(rank)] = int(folder.name)
        return [found[rank] for rank in sorted(found)]


@pytest.fixture
def site(tmp_path: Path, llama: Fitted, monkeypatch: pytest.MonkeyPatch) -> Site:
    (tmp_path / "steps_for_scale.py").write_text(STEPS)
    monkeypatch.setenv("PALORAD_STEPS", "steps_for_scale")
    monkeypatch.setenv("SAVED", str(tmp_path / "saved"))
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(root)]))
    monkeypatch.setattr(precision, "INSTRUCTIONS", ())
    return Site(tmp_path, llama)


@pytest.fixture(scope="module")
def whole(llama: Fitted, tmp_path_factory: pytest.TempPathFactory) -> lora.Lora:
    """The adapter of one process that nobody interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "INSTRUCTIONS", ())
        trained = Site(tmp_path_factory.mktemp("whole"), llama).alone()
    assert trained is not None
    return trained


def difference(one: lora.Lora | None, other: lora.Lora) -> float:
    """The largest of any value of the factors."""
    assert one is not None
    return max(
        float((mine - its).abs().max())
        for name, pair in one.factors.items()
        for mine, its in zip(pair, other.factors[name], strict=True)
    )


def test_two_processes_give_the_adapter_of_one(site: Site, whole: lora.Lora) -> None:
    """What the base says is computed once, and the first alone tells how far they are."""
    site.begin()
    state = site.until_ended()
    assert state.outcome == "finished", state.error
    assert difference(site.adapter(), whole) < BOUND
    assert max(float(up.abs().max()) for _, up in whole.factors.values()) > 100 * BOUND
    assert (site.root / "saved").read_text().split() == ["reference-"]
    lines = (site.workdir / "progress.jsonl").read_text().splitlines()
    assert sum('"train"' in line for line in lines) == STEPS_OF_RUN


def test_asked_to_stop_all_leave_a_checkpoint_from_which_one_goes_on(
    site: Site, whole: lora.Lora
) -> None:
    site.begin()
    site.until(5)
    assert len(site.processes()) == 2
    site.jobs.cancel(site.workdir)
    assert site.until_ended().outcome == "absent"
    assert not site.processes()
    reached = last_progress(site.workdir)
    assert reached is not None and reached.done < STEPS_OF_RUN
    (checkpoint,) = (site.workdir / "checkpoint").iterdir()
    assert int(checkpoint.name.removeprefix("checkpoint-")) == reached.done
    assert difference(site.alone(), whole) < BOUND


def test_a_process_that_is_killed_ends_the_child_and_the_next_try_goes_on(
    site: Site, whole: lora.Lora
) -> None:
    """Here from a checkpoint that one process has left."""
    site.alone(stop_after=9)
    site.begin()
    site.until(12)
    _, second = site.processes()
    os.kill(second, signal.SIGKILL)
    state = site.until_ended()
    assert state.outcome == "failed" and state.error is not None
    assert state.error.kind == "ProcessDied" and not state.error.final
    assert "process 2 of 2 that train together was ended by SIGKILL" in state.error.error
    assert not site.processes()
    site.begin()
    state = site.until_ended()
    assert state.outcome == "finished", state.error
    assert difference(site.adapter(), whole) < BOUND


def test_no_process_survives_the_child(site: Site) -> None:
    site.begin()
    site.until(1)
    assert len(site.processes()) == 2
    site.jobs.kill(site.workdir)
    end = time.monotonic() + PATIENCE_S
    while site.processes():
        assert time.monotonic() < end
        time.sleep(0.02)
