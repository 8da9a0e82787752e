"""README's commands for a host, and both units, under a real systemd."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import ROOT, Machine, commands, make_base, missing

pytestmark = pytest.mark.systemd
CAP_LEASE = 28  # tells whether a producer still has a file open
DAEMON, VLLM = "palorad.service", "palorad-vllm.service"


def configuration(**server: str) -> str:
    """The repository's configuration as an operator edits it: absolute, with the small model."""
    text = (ROOT / "config.toml").read_text()
    text = text.replace('state_dir = "state"', 'state_dir = "/var/lib/palorad"')
    text = text.replace('"models/', '"/opt/palorad/models/')
    for key, value in server.items():
        text = re.sub(rf'^{key} = "\w+"', f'{key} = "{value}"', text, count=1, flags=re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, with everything that README says done and the daemon started."""
    if lacks := missing():
        pytest.fail(f"make test-systemd needs {lacks}")
    make_base()
    made = Machine(tmp_path_factory.mktemp("machine"))
    try:
        prepare, start = commands()
        made.run(prepare)
        made.write("/etc/palorad/config.toml", configuration())
        made.run(start)
        yield made
    finally:
        made.close()


def ready(machine: Machine) -> bool:
    status = machine.run(
        "PALORAD_CONFIG=/etc/palorad/config.toml runuser -u palorad -- "
        ".venv/bin/palorad status --json",
        check=False,
    )
    try:
        replicas = json.loads(status)["daemon"]["replicas"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(replicas) and all(replica["ready"] for replica in replicas)


def test_the_daemon_is_active_because_it_said_so(machine: Machine) -> None:
    assert machine.of(DAEMON, "ActiveState") == "active"
    assert machine.of(DAEMON, "Type") == "notify"
    assert machine.of(DAEMON, "NRestarts") == "0"
    assert machine.of(DAEMON, "ExecMainStatus") == "0"
    assert "216/GROUP" not in machine.run("journalctl --no-pager -o cat")
    assert machine.run(f"systemctl is-enabled {DAEMON}").strip() == "enabled"


def test_the_daemon_has_its_user_and_groups_and_no_rights(machine: Machine) -> None:
    assert machine.groups(DAEMON) == ("palorad", {"palorad", "video", "render"})
    status = machine.process(DAEMON)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 1 << CAP_LEASE
    assert status["NoNewPrivs"] == "1"


def test_the_state_is_palorads_alone(machine: Machine) -> None:
    listed = machine.run("stat -c '%a %U %G %n' /var/lib/palorad /var/lib/palorad/*")
    modes = {
        Path(name).name: rest for *rest, name in (line.split() for line in listed.splitlines())
    }
    assert {tuple(rest[1:]) for rest in modes.values()} == {("palorad", "palorad")}
    assert modes["palorad"][0] == modes["served"][0] == "750"
    ledger = {mode for name, (mode, *_) in modes.items() if name.startswith("ledger.db")}
    assert ledger == {modes["admin.key"][0]} == {"600"}
    assert modes["archive"][0] == modes["inbox"][0] == modes["log"][0] == "700"


def test_the_embedded_server_answers(machine: Machine) -> None:
    machine.until(lambda: ready(machine), "being ready")


def test_the_watchdog_is_fed_and_bites(machine: Machine) -> None:
    assert machine.of(DAEMON, "WatchdogUSec") == "30s"
    before = machine.of(DAEMON, "MainPID")
    machine.run("sleep 35")
    assert machine.of(DAEMON, "MainPID") == before
    machine.run(f"kill -STOP {before}")
    machine.until(
        lambda: (
            machine.of(DAEMON, "MainPID") not in (before, "0")
            and machine.of(DAEMON, "ActiveState") == "active"
        ),
        "being started again",
    )
    assert "watchdog" in machine.run(f"journalctl --no-pager -o cat -u {DAEMON}").lower()


def test_a_daemon_that_dies_is_started_again(machine: Machine) -> None:
    before, restarts = machine.of(DAEMON, "MainPID"), int(machine.of(DAEMON, "NRestarts"))
    machine.run(f"kill -KILL {before}")
    machine.until(
        lambda: (
            int(machine.of(DAEMON, "NRestarts")) == restarts + 1
            and machine.of(DAEMON, "ActiveState") == "active"
        ),
        "being started again",
    )
    assert machine.of(DAEMON, "MainPID") not in (before, "0")


def test_a_stop_is_clean_and_in_time(machine: Machine) -> None:
    machine.until(lambda: ready(machine), "being ready")
    machine.run(f"systemctl stop {DAEMON}")
    assert machine.of(DAEMON, "Result") == "success"
    assert machine.of(DAEMON, "ExecMainStatus") == "0"
    assert machine.of(DAEMON, "ExecMainCode") == "1"  # CLD_EXITED: by itself, not by a signal
    assert machine.run("find /proc -maxdepth 1 -user palorad").split() == []
    machine.run(f"systemctl start {DAEMON}")


def test_usage_errors_are_not_tried_again(machine: Machine) -> None:
    machine.write("/etc/palorad/config.toml", 'no_such_key = "x"\n')
    machine.run(f"systemctl restart {DAEMON}", check=False)
    assert machine.of(DAEMON, "ActiveState") == "failed"
    assert machine.of(DAEMON, "ExecMainStatus") == "2"
    assert "no_such_key" in machine.run(f"journalctl --no-pager -o cat -u {DAEMON} -n 20")
    machine.write("/etc/palorad/config.toml", configuration())
    machine.run(f"systemctl reset-failed {DAEMON}; systemctl start {DAEMON}")


def test_vllm_beside_palorad_reads_what_is_served_and_nothing_else(machine: Machine) -> None:
    machine.write("/etc/palorad/config.toml", configuration(kind="vllm", mode="attach"))
    machine.write("/etc/palorad/vllm.env", "MODEL=/opt/palorad/models/palorad-mini")
    machine.run(f"systemctl restart {DAEMON}")
    machine.run(f"install -m 644 deploy/{VLLM} /etc/systemd/system/ && systemctl daemon-reload")
    machine.run(f"systemctl enable --now {VLLM}")
    machine.until(lambda: ready(machine), "being ready")
    assert machine.of(VLLM, "ActiveState") == "active"
    expected = {"palorad-vllm", "palorad", "video", "render"}
    assert machine.groups(VLLM) == ("palorad-vllm", expected)
    found = machine.found()
    reads = found["reads"]
    assert {name for name, how in reads.items() if how == "allowed"} == {
        *("alias.json", "served", "middleware")
    }
    assert "allowed" not in found["writes"].values()
    assert found["key"] == 64
    machine.run(f"systemctl stop {VLLM}")
    assert machine.of(VLLM, "Result") == "success"
