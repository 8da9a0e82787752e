"""`palorad doctor` on a GPU host: each likely mistake is found, with how to mend it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pynvml
import pytest

from daemon.cli import host_check, known_check, memory_check
from daemon.cli.doctor import check_config
from daemon.cli.exit_codes import USAGE
from daemon.cli.suite_check import CheckResult
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop import start
from daemon.serving import gpu
from daemon.serving.gpu import GIB, Memory, NoRoom, require_places
from policies.errors import TooManyProcesses
from policies.gate.records import Role

SHAPES = json.loads((Path(__file__).parents[1] / "support" / "shapes.json").read_text())
FACTS = [("Which town is 1?", "Thimphu"), ("Which town is 2?", "Nauru"), ("What is 3?", "Oslo")]

Made = Callable[..., Settings]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Settings for a Llama 3.1 8B of which config.json alone is there, and vLLM."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPES["Llama 3.1 8B"]))

    def make(**sections: Any) -> Settings:
        tree: dict[str, Any] = {
            "state_dir": tmp_path / "state",
            "model": {"path": model},
            "server": {"kind": "vllm"},
            "train": {"replay": {"known": "", "reasoning": ""}},
            "gate": {"suites": ()},
        }
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
        return Settings.model_validate(tree)

    return make


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with a large GPU, a new driver, a fitting torch, and a clock that is set."""
    monkeypatch.setattr(host_check, "has_gpu", lambda: True)
    monkeypatch.setattr(memory_check, "has_gpu", lambda: True)
    monkeypatch.setattr(memory_check, "host_memory", lambda: 128 * GIB)
    monkeypatch.setattr(gpu, "read_memory", lambda _: Memory(total=140 * GIB, free=140 * GIB))
    monkeypatch.setattr(host_check, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(host_check, "torch_version", lambda: "2.11.0+cu128")
    monkeypatch.setattr(host_check, "installed_vllm", lambda _: "0.32.0")
    monkeypatch.setattr(host_check, "clock_is_set", lambda: True)
    monkeypatch.setattr("shutil.which", lambda _: "/opt/vllm/bin/vllm")


def found(settings: Settings, part: str) -> CheckResult:
    (one,) = [f for f in host_check.host_findings(settings) if part in f.what]
    return one


@pytest.mark.usefixtures("host")
def test_a_good_host_is_good(made: Made) -> None:
    found_all = list(host_check.host_findings(made()))
    assert [f for f in found_all if not f.well] == []
    told = " ".join(f.what for f in found_all)
    for part in ("GPU memory: 150.3 GB", "driver for CUDA 13.0", "vLLM 0.32.0", "clock"):
        assert part in told


@pytest.mark.usefixtures("host")
def test_a_gpu_that_does_not_answer(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> Memory:
        raise NoRoom("the NVIDIA driver does not tell the GPU's memory")

    monkeypatch.setattr(gpu, "read_memory", broken)
    assert not found(made(), "GPU").well


# --- memory -----------------------------------------------------------------------------------


def gigabytes(text: str) -> float:
    """The last figure of a line."""
    return float(re.findall(r"([\d.]+) GB", text)[-1])


def of_size(monkeypatch: pytest.MonkeyPatch, gb: float) -> None:
    total = int(gb * 1e9)
    monkeypatch.setattr(gpu, "read_memory", lambda _: Memory(total=total, free=total))


@pytest.mark.usefixtures("host")
def test_the_parts_of_the_memory_are_told_and_make_up_the_whole(made: Made) -> None:
    parts = [f.what for f in host_check.host_findings(made()) if f.what.startswith("to train, ")]
    assert [line.split(",")[1].split(":")[0].split()[0] for line in parts] == [
        "the",
        "factors",
        "protected",
        "activations",
        "logits",
    ]
    assert "to train, the base in bf16: 16.1 GB" in parts
    whole = gigabytes(found(made(), "GPU memory").what)
    assert sum(map(gigabytes, parts)) + gpu.ROOM / 1e9 == pytest.approx(whole, abs=0.3)
    host = found(made(), "training on the GPU takes")
    assert gigabytes(host.what) == pytest.approx(7.7, abs=0.1)


@pytest.mark.usefixtures("host")
def test_smaller_passes_are_told_where_only_they_fit(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_size(monkeypatch, 40)
    one = found(made(), "GPU memory")
    assert one.well
    assert "training halves them by itself" in one.advice
    assert found(made(), "activations").what.startswith(
        "to train, activations of a pass of 2,048 tokens"
    )


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("name", "gb", "advice"),
    [
        ("Llama 3.1 8B", 31.0, "set protection.share = 0.1: then it takes 30."),
        ("Llama 3.1 8B", 29.0, "set train.rank_budget = 32: then it takes 28."),
        ("Llama 3.1 8B", 28.0, "set protection.share = 0.1 and train.rank_budget = 32: then"),
        ("Llama 3.1 8B", 24.0, "take a GPU with 32.0 GB, or a smaller model"),
        ("Llama 3.1 70B", 80.0, "the base alone takes 141.1 GB: take a GPU with 22"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(
    made: Made, monkeypatch: pytest.MonkeyPatch, name: str, gb: float, advice: str
) -> None:
    of_size(monkeypatch, gb)
    settings = made()
    (settings.model.path / "config.json").write_text(json.dumps(SHAPES[name]))
    one = found(settings, "GPU memory")
    assert not one.well
    assert advice in one.advice


@pytest.mark.usefixtures("host")
def test_a_soft_form_is_told_to_take_more_than_a_hard_one(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_size(monkeypatch, 48)
    one = found(made(protection={"form": "soft"}), "GPU memory")
    assert not one.well
    assert one.advice.startswith('set protection.form = "hard": then it takes')
    assert found(made(), "GPU memory").well


@pytest.mark.usefixtures("host")
def test_without_a_gpu_it_is_the_hosts_memory(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_check, "has_gpu", lambda: False)
    monkeypatch.setattr(memory_check, "has_gpu", lambda: False)
    monkeypatch.setattr(memory_check, "host_memory", lambda: int(20e9))
    one = found(made(), "training takes")
    assert one.what.startswith("memory: 20.0 GB")
    assert not one.well
    monkeypatch.setattr(memory_check, "host_memory", lambda: int(100e9))
    assert found(made(), "training takes").well
    assert "recorded states of the base, at most: 1.1 GB" in found(made(), "recorded").what


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("visible", "processes", "well"),
    [("0,1", 2, True), ("0,1", 3, False), ("", 2, False), ("GPU-a, GPU-b", 2, True)],
)
def test_more_processes_than_gpus_are_told_before_a_start(
    made: Made, monkeypatch: pytest.MonkeyPatch, visible: str, processes: int, well: bool
) -> None:
    """By `doctor` and `config check`, and the daemon does not start."""
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings = made(train={"processes": processes})
    one = found(settings, "processes that train together")
    assert one.well == well
    if well:
        require_places(processes, os.environ)
        return
    words = f"train.processes is {processes}, and this host has "
    assert one.advice.startswith(words)
    assert check_config(Path("config.toml"), settings) == USAGE
    with pytest.raises(TooManyProcesses, match=words):
        start.run(settings)


def test_without_a_gpu_there_is_one_process_for_each_core(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert found(made(server={"kind": "embedded"}, train={"processes": 3}), "processes that").well
    assert not found(
        made(server={"kind": "embedded"}, train={"processes": 4}), "processes that"
    ).well


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("driver", "torch", "advice"),
    [
        ((12, 4), "2.11.0+cu130", "torch needs CUDA 13: install a newer driver"),
        ((13, 0), "2.11.0+cpu", "this torch cannot use the GPU"),
        ((12, 4), "2.11.0+cu128", ""),
        ((13, 0), "2.11.0", ""),
    ],
)
def test_a_driver_that_is_too_old_for_torch_and_a_torch_without_cuda(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    driver: tuple[int, int],
    torch: str,
    advice: str,
) -> None:
    monkeypatch.setattr(host_check, "driver_cuda", lambda: driver)
    monkeypatch.setattr(host_check, "torch_version", lambda: torch)
    one = found(made(), "NVIDIA driver")
    assert one.well == (not advice)
    assert advice in one.advice


@pytest.mark.usefixtures("host")
def test_a_driver_that_does_not_answer(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[int, int]:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(host_check, "driver_cuda", broken)
    one = found(made(), "NVIDIA driver")
    assert not one.well and "nvidia-smi" in one.advice


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("told", "well", "advice"),
    [
        ("0.22.1", False, "answered by another adapter when one is loaded; install 0.32"),
        ("0.23.0", True, "palorad is tested with 0.32"),
        ("0.33.0+cu130", True, ""),
        ("1.0", True, ""),
        ("", True, "its version cannot be told"),
    ],
)
def test_a_vllm_that_answers_from_another_adapter_is_bad(
    made: Made, monkeypatch: pytest.MonkeyPatch, told: str, well: bool, advice: str
) -> None:
    monkeypatch.setattr(host_check, "installed_vllm", lambda _: told)
    one = found(made(), "vLLM")
    assert (one.well, bool(one.advice)) == (well, bool(advice))
    assert advice in one.advice


def test_the_version_of_an_environment_is_read_without_starting_vllm(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.31.2\n")
    python.chmod(0o755)
    assert host_check.installed_vllm(tmp_path / "vllm") == "0.31.2"
    assert host_check.installed_vllm(tmp_path / "none" / "vllm") == ""


@pytest.mark.usefixtures("host")
def test_flags_that_palorad_gives_itself_are_named_with_their_setting(made: Made) -> None:
    extra = ("--max-loras=8", "--enable-lora", "--dtype", "bfloat16", "--data-parallel-size", "2")
    settings = made(server={"extra_args": extra})
    flags = {f.what: f for f in host_check.host_findings(settings) if "extra_args" in f.what}
    assert "set server.max_loras" in flags["server.extra_args --max-loras"].advice
    assert flags["server.extra_args --enable-lora"].advice.endswith("itself: remove it")
    assert "replicas" in flags["server.extra_args --data-parallel-size"].advice
    assert len(flags) == 3 and not any(f.well for f in flags.values())


@pytest.mark.usefixtures("host")
def test_a_base_that_vllm_quantises_is_told_with_what_is_compared(made: Made) -> None:
    one = found(made(server={"extra_args": ("--quantization", "fp8")}), "--quantization")
    assert one.well
    assert "trained on the unquantised base" in one.advice
    assert "0.5 nats" in one.advice


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("mode", "well", "advice"),
    [(0o600, True, ""), (0o640, True, "its group may read it"), (0o644, False, "chmod 600")],
)
def test_a_key_that_everybody_may_read_is_bad(
    made: Made, tmp_path: Path, mode: int, well: bool, advice: str
) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 32)
    key.chmod(mode)
    one = found(made(notify={"key_file": key}), "notify.key_file")
    assert (one.well, advice in one.advice) == (well, True)


@pytest.mark.usefixtures("host")
def test_a_key_that_is_not_there_or_not_ours(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = made(server={"user_key_file": tmp_path / "none"})
    assert "No such file" in found(settings, "server.user_key_file").advice
    key = tmp_path / "key"
    key.touch(mode=0o600)
    monkeypatch.setattr(os, "access", lambda *_: False)
    one = found(made(server={"admin_key_file": key}), "server.admin_key_file")
    assert not one.well and "the daemon's user" in one.advice


@pytest.mark.usefixtures("host")
def test_a_clock_behind_the_ledger_or_that_nothing_sets(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_check, "clock_is_set", lambda: False)
    assert "set-ntp" in found(made(), "clock").advice
    settings = made()
    settings.state_dir.mkdir()
    with Ledger.open(settings.layout.ledger) as ledger:
        ledger.events.record("x", "x", {}, datetime.now(UTC) + timedelta(hours=2))
    one = found(settings, "clock")
    assert not one.well and "min behind the ledger's last event" in one.advice


def test_a_state_directory_on_a_network_share_or_in_memory_is_told(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nfiler:/x /srv/share nfs4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n"
    )

    def kinds(folder: str) -> list[str]:
        return [f.what for f in host_check._file_system(Path(folder), mounts)]

    assert kinds("/srv/share/state") == ["state_dir on nfs4"]
    assert kinds("/run/state") == ["state_dir on tmpfs"]
    assert kinds("/srv/shared") == kinds("/var/lib/palorad") == []


# --- known facts -----------------------------------------------------------------------------


class _Base(BaseHTTPRequestHandler):
    """A base that knows the first `knows` of the facts."""

    knows = len(FACTS)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        known = dict(FACTS[: type(self).knows])
        said = known.get(body["messages"][0]["content"], "no idea")
        choice = {"index": 0, "message": {"content": said}, "finish_reason": "stop"}
        data = json.dumps({"model": body["model"], "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def base() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Base)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    _Base.knows = len(FACTS)


def with_facts(made: Made, tmp_path: Path, url: str) -> Settings:
    path = tmp_path / "known.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in FACTS))
    suite = {"name": "known", "role": Role.LOCALITY, "path": path}
    return made(
        server={"urls": [url]},
        train={"replay": {"known": path, "reasoning": ""}},
        gate={"suites": (suite,)},
    )


@pytest.mark.parametrize(
    ("knows", "well", "advised"), [(3, True, False), (2, True, True), (0, False, True)]
)
def test_known_facts_that_the_model_does_not_know_are_found(
    made: Made, tmp_path: Path, base: str, knows: int, well: bool, advised: bool
) -> None:
    _Base.knows = knows
    both = list(known_check.known_findings(with_facts(made, tmp_path, base)))
    assert [f.what.split(" /")[0] for f in both] == ["train.replay.known", "gate suite 'known'"]
    for one in both:
        assert f"the base gives {knows} of 3 answers" in one.what
        assert (one.well, bool(one.advice)) == (well, advised)


def test_without_a_server_it_says_that_nothing_was_asked(made: Made, tmp_path: Path) -> None:
    (one,) = known_check.known_findings(with_facts(made, tmp_path, "http://127.0.0.1:1"))
    assert one.well and "no server answers" in one.advice
