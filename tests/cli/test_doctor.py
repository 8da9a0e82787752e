"""`palorad doctor` and `config check`: what the probe of the configured model needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.cli import main

SHAPES = json.loads((Path(__file__).parents[1] / "support" / "shapes.json").read_text())

Palorad = Callable[..., tuple[int, str]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration for a Llama 3.1 8B of which config.json alone is there."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPES["Llama 3.1 8B"]))
    for name in ("skill", "known", "reasoning"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "solution": "b"}\n')
    path = tmp_path / "config.toml"
    path.write_text(
        '[model]\npath = "model"\n[probe]\nskill = "skill.jsonl"\n[gate]\nsuites = []\n'
        '[train.replay]\nknown = "known.jsonl"\nreasoning = "reasoning.jsonl"\n'
    )
    return path


@pytest.fixture
def palorad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path
) -> Palorad:
    def run(*command: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["palorad", *command, "-c", str(config)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def card_of(config: Path, share: float, name: str = "abc") -> Path:
    """A fitted probe's card in the state directory."""
    folder = config.parent / "state" / "probe" / name
    folder.mkdir(parents=True)
    matrices = {
        f"{layer}.{kind}": {"inputs": inputs}
        for layer in range(32)
        for kind, inputs in (("gate", 4096), ("up", 4096), ("down", 14336))
    }
    card = {"settings": {"share": share}, "matrices": matrices}
    (folder / "probe.json").write_text(json.dumps(card))
    return folder


def test_an_8b_fits_by_default_and_its_needs_are_said(palorad: Palorad, config: Path) -> None:
    code, out = palorad("config", "check")
    assert code == 0, out
    needs = "5.7 GB on disk (8.9 GB while it is fitted)"
    assert needs in " ".join(out.split())
    _, out = palorad("doctor", "--json")
    found = json.loads(out)
    assert [f["well"] for f in found if needs in f["what"]] == [True]


def test_a_disk_that_is_too_small_for_the_probe_is_bad(
    palorad: Palorad, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 8 * 10**9

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    code, out = palorad("config", "check")
    assert code == 2
    assert "make room in" in out
    card_of(config, 0.2)
    code, out = palorad("config", "check")
    assert code == 0, out


def test_a_share_that_leaves_no_room_for_an_adapter_is_named(
    palorad: Palorad, config: Path
) -> None:
    code, out = palorad("config", "check", "--set", "protection.share=0.97")
    assert code == 2
    said = " ".join(out.split())
    assert "protection.share 0.97: gate_proj keeps 123 free directions of 4096" in said
    assert palorad("config", "check", "--set", "protection.share=0.96")[0] == 0


def test_a_fitted_probe_with_fewer_directions_is_named(palorad: Palorad, config: Path) -> None:
    folder = card_of(config, 0.2)
    card_of(config, 0.5, "another")
    code, out = palorad("config", "check", "--set", "protection.share=0.4")
    assert code == 2
    said = " ".join(out.split())
    assert str(folder) in said and "another" not in said
    assert "protection.share 0.4 asks for" in said
    assert palorad("config", "check")[0] == 0
