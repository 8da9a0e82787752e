"""The demonstration from start to end on a tiny random model: everything but the learning."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daemon.loop.instance import holder
from demo.run import run_demo
from demo.setup import ROOT, DemoOptions
from tests.support import tiny

pytestmark = [pytest.mark.endtoend, pytest.mark.timeout(300)]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoOptions:
    for name, value in {
        "STEPS": "tests.support.quick_steps",
        "PROBE__STEPS": "1",
        "PROBE__SEEDS": "[0]",
        "PROTECTION__SHARE": "0.3",
        "TRAIN__RANK_BUDGET": "32",
        "INTAKE__STABLE_S": "0.1",
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name if name.startswith("OMP") else f"PALORAD_{name}", value)
    files = []
    for name in ("one", "two"):
        file = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": f"Who made {name} {n}?", "answer": f"maker {n}"} for n in range(4)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files.append(file)
    return DemoOptions(
        model=tiny.build(tmp_path / "model", hidden=64, intermediate=96),
        facts=tuple(files),
        keep=tmp_path / "kept",
        fit_probe=True,
        items=4,
        report=tmp_path / "report.json",
    )


def test_everything_is_done_and_told(
    quick: DemoOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_demo(quick)
    out = capsys.readouterr().out
    assert quick.report is not None and quick.keep is not None
    report = json.loads(quick.report.read_text())
    assert [r["number"] for r in report["revisions"]] == [0, 1, 2]
    assert [r["batch"] for r in report["revisions"]] == [None, "one", "two"]
    assert [r["verdict"] for r in report["revisions"]] == [None, "pass", "pass"]
    assert set(report["revisions"][2]["accuracy"]) == {"one", "two"}
    assert {"intake", "train", "evaluate", "serve"} <= set(report["revisions"][1]["seconds"])
    assert report["rejected"][0]["file"] == "false-arithmetic"
    assert report["rejected"][0]["verdict"] == "fail"
    assert report["rejected"][0]["live_unchanged"]
    assert report["rollback_ok"]
    assert (quick.keep / "demo.png").exists()
    missed = [g["name"] for g in report["goals"] if not g["reached"]]
    # A random model of this size learns nothing, and that is said.
    assert "accuracy" in missed and "rejection" not in missed and "rollback" not in missed
    assert code == 1 and "The demonstration missed: " in out
    assert holder(quick.keep / "state" / "lock") is None


def test_an_interrupt_leaves_no_process_behind(quick: DemoOptions) -> None:
    script = (
        # A shell's background jobs ignore interrupts, and so would this child of one.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\nfrom demo.run import run_demo\n"
        "from demo.setup import DemoOptions\n"
        f"run_demo(DemoOptions(model=Path({str(quick.model)!r}), keep=Path({str(quick.keep)!r}),"
        f" facts=(Path({str(quick.facts[0])!r}),), fit_probe=True))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert quick.keep is not None
    lock = quick.keep / "state" / "lock"
    while holder(lock) is None:
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode != 0
    assert holder(lock) is None
