"""A small batch on a real model goes live through the real vLLM, by suites that it can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.ask import Endpoint, rate
from demo.questions import held_out_questions
from demo.scenario import SMOL
from demo.setup import DemoOptions, fact_files
from policies.gate.mentions import contains
from tests.support.live import SMALL, VLLM
from tests.support.real import configure, running

FACTS = 4
RANK = 32

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SMOL.data.is_dir(), reason="models/smol is not here: make smol-known"),
    pytest.mark.skipif(not VLLM.exists(), reason="there is no vLLM: make setup-vllm"),
]


def first_lines(source: Path, folder: Path, count: int) -> Path:
    """A shorter file of the same name."""
    path = folder / source.name
    path.write_text("".join(source.read_text().splitlines(keepends=True)[:count]))
    return path


def test_a_small_batch_on_a_real_model_goes_live_through_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PALORAD_TEST_VLLM", raising=False)  # no setting, so the daemon refuses it
    config = configure(
        tmp_path,
        DemoOptions(scenario=SMOL),
        server={
            "kind": "vllm",
            "executable": str(VLLM),
            "extra_args": list(SMALL),
            "max_lora_rank": RANK,
        },
        train={"rank_budget": RANK},
        # As little as may be asked where a tenth is to be ruled out.
        gate={"reasoning_margin": 0.1, "aa_sample": 0},
    )
    file = first_lines(fact_files(DemoOptions(scenario=SMOL))[0], tmp_path, FACTS)
    with running(config) as follow:
        follow.batch_s = 600.0
        settled = follow.until_settled(follow.drop(file), file.name)
        assert settled.verdict == "pass", settled.reasons
        assert follow.served() == follow.target() == 1
        endpoint = Endpoint(follow.settings.server.urls[0], follow.settings.model.alias)
        answers = endpoint.ask(held_out_questions(file), contains, SMOL.fact_tokens)
        assert {answer.revision for answer in answers} == {"1"}
        assert rate(answers) >= 0.75, [answer.text for answer in answers]
        follow.change("rollback", 0)
        before = endpoint.ask(held_out_questions(file), contains, SMOL.fact_tokens)
        assert rate(before) <= 0.1, json.dumps([answer.text for answer in before])
