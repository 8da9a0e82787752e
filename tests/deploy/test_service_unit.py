"""deploy/palorad.service is a valid unit, hardened, fed by the loop, and reaches the GPU.

What is installed beside it, and what the documents say of it, fit each other.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.cli.session import SYSTEM_CONFIG
from daemon.config.layout import Layout
from daemon.serving.server_command import install_middleware

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "palorad.service"
UNITS = sorted(DEPLOY.glob("*.service"))
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted(path for path in DEPLOY.rglob("*") if path.is_file()),
    ]
}
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that exists here, because verify looks for it."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/palorad/.venv/bin/palorad", "/bin/true"))
    return copy


@needs_systemd
def test_systemd_accepts_it(unit: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [x for x in done.stderr.splitlines() if unit.name in x or "group name" in x]
    assert told == []


@needs_systemd
def test_it_is_hardened(unit: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=yes", "--threshold=40", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-400:]
    exposure = re.search(r"exposure level.*?: ([\d.]+)", done.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= 4.0


def test_it_fits_what_the_daemon_does() -> None:
    lines = [line.strip() for line in UNIT.read_text().splitlines()]
    for needed in (
        "Type=notify",
        "WatchdogSec=30",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "KillMode=mixed",
        "RestartPreventExitStatus=2",
        "StateDirectory=palorad",
        "DeviceAllow=char-nvidia-frontend rw",
    ):
        assert needed in lines
    for forbidden in ("PrivateDevices=yes", "MemoryDenyWriteExecute=yes", "PrivateNetwork=yes"):
        assert forbidden not in lines


def values(text: str, key: str) -> list[str]:
    """The words that a unit gives to a key, in all its lines."""
    return [
        word
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith(f"{key}=")
        for word in line.partition("=")[2].split()
    ]


def lines_of(name: str) -> list[list[str]]:
    """The fields of a file for sysusers or tmpfiles, line by line."""
    text = (DEPLOY / name).read_text()
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


MADE = {fields[1] for fields in lines_of("palorad.sysusers") if fields[0] == "u"}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_its_users_and_groups_are_names_and_are_made(path: Path) -> None:
    text = path.read_text()
    (user,), (group,) = values(text, "User"), values(text, "Group")
    assert user == group == path.stem
    named = {user, group, *values(text, "SupplementaryGroups")}
    assert named <= MADE
    assert all(re.fullmatch(r"[a-z_][a-z0-9_-]*", name) for name in named)


def test_vllm_may_read_what_is_served_and_write_nothing() -> None:
    text = (DEPLOY / "palorad-vllm.service").read_text()
    assert values(text, "ProtectSystem") == ["strict"]
    assert values(text, "StateDirectory") == []  # systemd would give the whole tree to its user
    assert values(text, "ReadWritePaths") == []
    layout = Layout(Path("/var/lib/palorad"))
    modes = {Path(f[1]): (f[2], f[3], f[4]) for f in lines_of("palorad.tmpfiles")}
    assert modes.pop(layout.served) == modes.pop(layout.root) == ("0750", "palorad", "palorad")
    assert modes.pop(layout.root / "middleware") == ("0750", "palorad", "palorad")
    assert modes.pop(layout.ledger) == ("0600", "palorad", "palorad")
    modes.pop(SYSTEM_CONFIG.parent)
    assert set(modes) >= {*layout.directories(), layout.records} - {layout.root, layout.served}
    assert set(modes.values()) == {("0700", "palorad", "palorad")}


def test_everything_names_one_set_of_paths(tmp_path: Path) -> None:
    layout = Layout(Path("/var/lib/palorad"))
    middleware = install_middleware(tmp_path).relative_to(tmp_path).parent.name
    known = {*layout.directories(), layout.records, layout.ledger, layout.alias, layout.admin_key}
    known |= {layout.root / middleware, layout.root / "log"}
    settings = {"config.toml", "palorad.env", "vllm.env", "skill.jsonl", "known.jsonl"}
    settings |= {"gsm8k-test.jsonl", "known-gate.jsonl"}
    found: dict[str, set[str]] = {}
    for text in TEXTS.values():
        for place in re.findall(r"/(?:opt|var/lib|etc/palorad)(?:/[\w.-]*\w)*", text):
            found.setdefault(place.split("/")[1], set()).add(place)
    assert found["opt"] == {
        *("/opt/palorad", "/opt/palorad/.venv", "/opt/palorad/.venv/bin/palorad"),
        *("/opt/vllm", "/opt/vllm/bin/vllm"),
    }
    assert {Path(place) for place in found["var"]} <= known
    assert {Path(place).name for place in found["etc"]} - {"palorad"} == settings
    assert 'state_dir = "/var/lib/palorad"\n' in TEXTS["README.md"]
    assert str(SYSTEM_CONFIG) in TEXTS["deploy/palorad.service"]


def test_readme_makes_the_users_before_the_daemon_starts() -> None:
    text = TEXTS["README.md"]
    steps = [
        "deploy/palorad.sysusers /etc/sysusers.d/palorad.conf",
        "deploy/palorad.tmpfiles /etc/tmpfiles.d/palorad.conf",
        "systemd-sysusers && systemd-tmpfiles --create palorad.conf",
        "config.toml /etc/palorad/config.toml",
        "export PALORAD_CONFIG=/etc/palorad/config.toml",  # else ./config.toml comes first
        "runuser -u palorad -- .venv/bin/palorad probe fit",
        "deploy/palorad.service /etc/systemd/system/",
        "systemctl enable --now palorad",
    ]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    assert (
        "\n.venv/bin/palorad" not in text
    )  # as root it would leave files that palorad cannot write
