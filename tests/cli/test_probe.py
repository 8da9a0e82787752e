"""`palorad probe show`: the numbers, the drawing, and a clear line where there is no probe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from adapters.probe import Probe, Protection
from adapters.probe_fit import ProbeConfig, fit_probe
from adapters.spectrum import spectra
from daemon.cli import main
from policies.records import Example
from tests.support import tiny

SKILL = [Example(prompt=f"{a}+{b}=", completion=str(a + b)) for a in range(6) for b in range(4)]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    folder = tmp_path_factory.mktemp("probe")
    model = tiny.build(folder / "base")
    found = fit_probe(model, SKILL, folder / "probe", ProbeConfig(steps=4, batch=4))
    (folder / "config.toml").write_text(
        f'[model]\npath = "{model}"\n[probe]\npath = "{found.directory}"\n'
    )
    return found


def show(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, str, str]:
    config = str(probe.directory.parent / "config.toml")
    monkeypatch.setattr(sys, "argv", ["palorad", "probe", "show", "-c", config, *more])
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.mark.parametrize("bins", [1, 5, 32, 1000])
def test_a_spectrum_falls_and_marks_as_much_as_is_critical(probe: Probe, bins: int) -> None:
    for name, one in spectra(probe, bins).items():
        sigma = probe.sigma(name)
        assert len(one.sigma) == len(one.critical) == min(bins, len(sigma))
        assert list(one.sigma) == sorted(one.sigma, reverse=True)
        sizes = [len(run) for run in sigma.tensor_split(len(one.sigma))]
        marked = sum(size * share for size, share in zip(sizes, one.critical, strict=True))
        assert marked == pytest.approx(len(probe.critical(name, Protection(kind="svf"))))


def test_every_matrix_is_drawn_with_its_critical_components(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = show(probe, monkeypatch, capsys)
    assert code == 0
    for name in probe.matrices:
        assert out.count(name.removeprefix("model.layers.")) == 2
    assert "█" in out and "·" in out
    _, said, _ = show(probe, monkeypatch, capsys, "--json")
    found = json.loads(said)["spectra"]
    assert set(found) == set(probe.matrices)


def test_moments_alone_are_shown_without_what_was_not_fitted(
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    model = probe.directory.parent / "base"
    alone = fit_probe(model, SKILL, tmp_path / "probe", ProbeConfig(seeds=()))
    (tmp_path / "config.toml").write_text(
        f'[model]\npath = "{model}"\n[probe]\npath = "{alone.directory}"\n'
    )
    code, out, _ = show(alone, monkeypatch, capsys)
    assert code == 0 and "moments alone" in out
    assert "overlap" not in out and "critical" not in out
    for name in alone.matrices:
        assert out.count(name.removeprefix("model.layers.")) == 1
    _, said, _ = show(alone, monkeypatch, capsys, "--json")
    assert json.loads(said)["spectra"] == {}


def test_a_probe_that_is_not_informative_says_what_speaks_against_it(
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = probe.directory / "probe.json"
    card = json.loads(path.read_text())
    needed = card["overlap"]["needed"]

    def said(after: list[float], agreement: float, informative: bool) -> str:
        card["skill"] |= {"loss_before": 1.0, "loss_after": after}
        card["overlap"]["agreement"], card["informative"] = agreement, informative
        path.write_text(json.dumps(card))
        out = show(probe, monkeypatch, capsys)[1]
        return next(line for line in out.splitlines() if "informative" in line)

    before = path.read_text()
    try:
        assert said([0.9, 0.8, 0.9], needed, True) == "informative"
        loss, seeds = said([1.1, 0.9, 1.0], needed, False), said([0.9, 0.8, 0.9], 0.1, False)
        assert "with 1 of 3 seeds" in loss and "agree" not in loss
        assert "agree little more than by chance" in seeds and "loss" not in seeds
    finally:
        path.write_text(before)


def test_a_damaged_probe_is_named_in_one_line(
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    broken = tmp_path / "probe"
    broken.mkdir()
    (broken / "probe.json").write_bytes((probe.directory / "probe.json").read_bytes())
    (broken / "probe.safetensors").write_bytes(b"torn")
    model = probe.directory.parent / "base"
    config = tmp_path / "config.toml"
    config.write_text(f'[model]\npath = "{model}"\n[probe]\npath = "{broken}"\n')
    monkeypatch.setattr(sys, "argv", ["palorad", "probe", "show", "-c", str(config)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert str(broken) in said.err and len(said.err.strip().splitlines()) == 1
