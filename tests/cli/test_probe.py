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
