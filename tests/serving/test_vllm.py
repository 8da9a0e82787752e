"""The real vLLM: broken adapters, two replicas. What only it can show."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from adapters import lora, store
from adapters.checks import check_adapter
from adapters.generate import Generator
from daemon.serving import identity
from daemon.serving.replica_status import NotServed
from policies.errors import PaloradError, ServerRefused
from policies.records import Revision
from tests.support import live
from tests.support.live import PROMPTS, Live

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.parametrize("site", ["vllm"], indirect=True, scope="session"),
]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Break = Callable[[Path], None]


@pytest.fixture(scope="module")
def generator(site: Live) -> Generator:
    return Generator(site.model_dir, max_rank=16, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def good(site: Live, generator: Generator) -> Revision:
    made = live.publish(generator, site.served, 1)
    assert site.fleet(lambda fleet: fleet.ensure(made)).done
    return made


def tensors(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Break:
    def apply(directory: Path) -> None:
        found = safetensors.torch.load_file(directory / WEIGHTS)
        changed = {k: v.contiguous().clone() for k, v in edit(found).items()}
        safetensors.torch.save_file(changed, directory / WEIGHTS)

    return apply


def config(**changes: object) -> Break:
    def apply(directory: Path) -> None:
        value = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps(value | changes))

    return apply


def _poison(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    key = next(k for k in found if k.endswith("lora_B.weight"))
    return {**found, key: torch.full_like(found[key], float("nan"))}


def _garbage(directory: Path) -> None:
    (directory / CONFIG).write_text("{not json")


def _truncate(directory: Path) -> None:
    raw = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(raw[: len(raw) // 2])


# Loaded by vLLM with 200, and silently wrong.
SILENT: dict[str, Break] = {
    "smaller hidden size": tensors(
        lambda found: {k: v[:, : v.shape[1] // 2] if "lora_A" in k else v for k, v in found.items()}
    ),
    "r is not the tensors' rank": config(r=8),
    "wrong key prefix": tensors(
        lambda found: {k.replace("base_model.model.", "other."): v for k, v in found.items()}
    ),
    "extra layers": tensors(
        lambda found: found | {k.replace("layers.0", "layers.9"): v for k, v in found.items()}
    ),
    "wrong base name": config(base_model_name_or_path="another/base"),
    "NaN": tensors(_poison),
}
# Refused by vLLM itself.
LOUD: dict[str, Break] = {
    "bad JSON": _garbage,
    "truncated weights": _truncate,
    "rank above the maximum": lambda directory: None,
    "DoRA": config(use_dora=True),
    "bias": config(bias="all"),
    "unknown module": tensors(
        lambda found: {k.replace("up_proj", "sideways_proj"): v for k, v in found.items()}
    ),
    "larger shapes": tensors(
        lambda found: {
            k: torch.cat([v, v], 1) if "lora_A" in k else torch.cat([v, v], 0)
            for k, v in found.items()
        }
    ),
}
SAME_ANSWERS = {"wrong base name", "extra layers"}


def broken(site: Live, generator: Generator, kind: str, number: int) -> str:
    """A directory published with the fault in it, and the sound adapter's identity beside it."""
    sound = site.served / live.publish(generator, site.served, number).served_name
    staging = store.staging(site.served, f"broken-{number}")
    shutil.copytree(sound, staging, dirs_exist_ok=True)
    (staging / store.MANIFEST).unlink()
    if kind == "rank above the maximum":
        lora.write(staging, live.random_lora(site.model_dir, number, rank=32), "base")
    else:
        (SILENT | LOUD)[kind](staging)
    return store.publish(staging, site.served, {}, lambda sha: f"palora-{number:06}-{sha[:8]}").name


def stays(site: Live, good: Revision) -> None:
    """The live answers are those of before."""
    answers = site.do(
        lambda s: s.complete("live", PROMPTS, max_tokens=8, ignore_eos=True), admin=False
    )
    known = identity.read(site.served / good.served_name)
    assert identity.mismatch(known, answers) is None
    assert answers[0].headers["x-palorad-revision"] == "1"


@pytest.mark.parametrize("kind", [*LOUD, *(k for k in SILENT if k != "NaN")])
def test_a_broken_adapter_is_stopped_before_promotion(
    site: Live, generator: Generator, good: Revision, kind: str
) -> None:
    number = 20 + [*LOUD, *SILENT].index(kind)
    name = broken(site, generator, kind, number)
    reasons = check_adapter(site.served / name, site.model_dir, max_rank=16, base_name="base")
    assert reasons
    if kind not in SAME_ANSWERS:
        with pytest.raises(PaloradError):
            site.fleet(lambda fleet: fleet.stage(name))
        result = site.fleet(lambda fleet: fleet.ensure(live.revision(number, name), good))
        assert not result.done
        assert result.replicas[0].reason
    stays(site, good)


def test_bytes_changed_after_publication_are_not_loaded(
    site: Live, generator: Generator, good: Revision
) -> None:
    name = live.publish(generator, site.served, 50).served_name
    with (site.served / name / WEIGHTS).open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(b"\0\0\0\0")
    with pytest.raises(NotServed, match="has changed"):
        site.fleet(lambda fleet: fleet.stage(name))
    assert name not in site.do(lambda s: s.loaded())
    stays(site, good)


def test_two_replicas_one_killed_during_a_promotion(
    site: Live, generator: Generator, good: Revision
) -> None:
    other = Live("vllm", site.settings.state_dir, site.model_dir)
    other.start()
    try:
        target = live.publish(generator, site.served, 70)
        assert site.fleet(lambda fleet: fleet.ensure(good), other).done
        killer = threading.Timer(0.05, other.kill)
        killer.start()
        site.fleet(lambda fleet: fleet.ensure(target, good), other)
        killer.join()
        result = site.fleet(lambda fleet: fleet.ensure(target, good), other)
        mine, lost = result.replicas
        assert mine.active == target.served_name
        assert (lost.healthy, lost.active, lost.verified_at) == (False, None, None)
        other.start()
        assert not other.do(lambda s: s.ready())
        with pytest.raises(ServerRefused) as refused:
            other.do(lambda s: s.complete("live", ["x"], max_tokens=1), admin=False)
        assert refused.value.status == 503
        _, waiting = site.fleet(lambda fleet: fleet.observe(), other)
        assert (waiting.healthy, waiting.active, waiting.verified_at) == (True, None, None)
        assert site.fleet(lambda fleet: fleet.ensure(target, good), other).done
        assert other.do(lambda s: s.ready())
        answers = other.do(
            lambda s: s.complete("live", PROMPTS, max_tokens=8, ignore_eos=True), admin=False
        )
        assert answers[0].headers["x-palorad-revision"] == "70"
    finally:
        other.stop()


def test_nan_is_never_loaded(site: Live, generator: Generator, good: Revision) -> None:
    """It would stay in the cache of the process that computed it, for every revision."""
    assert site.fleet(lambda fleet: fleet.ensure(good)).done
    name = broken(site, generator, "NaN", 60)
    assert check_adapter(site.served / name, site.model_dir, max_rank=16)
    with pytest.raises(NotServed, match="NaN"):
        site.fleet(lambda fleet: fleet.stage(name))
    assert name not in site.do(lambda s: s.loaded())
    stays(site, good)
