"""Where everything durable lies below the state directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """Every path of the state directory by name; nothing else in the code spells them."""

    root: Path
    inbox_dir: Path | None = None

    @property
    def ledger(self) -> Path:
        """The database; only the daemon process writes it."""
        return self.root / "ledger.db"

    @property
    def lock(self) -> Path:
        """Held with `flock` by the one running daemon; holds its pid."""
        return self.root / "lock"

    @property
    def control_socket(self) -> Path:
        """The control socket."""
        return self.root / "control.sock"

    @property
    def inbox(self) -> Path:
        """Where users drop files and find receipts."""
        return self.inbox_dir or self.root / "inbox"

    @property
    def archive(self) -> Path:
        """The bytes of every admitted drop."""
        return self.root / "archive"

    def archived(self, batch_id: str) -> Path:
        """The bytes of one batch."""
        return self.archive / f"{batch_id}.jsonl"

    @property
    def probes(self) -> Path:
        """Parent of the fitted probes."""
        return self.root / "probe"

    def probe(self, base_sha256: str) -> Path:
        """The probe of one base."""
        return self.probes / base_sha256[:12]

    def expert(self, base_sha256: str) -> Path:
        """The checkpoint served instead of that base when `probe.serve` is "expert"."""
        return self.root / "expert" / base_sha256[:12]

    @property
    def adapters(self) -> Path:
        """Parent of the trained adapters."""
        return self.root / "adapters"

    def adapter(self, sha256: str) -> Path:
        """One trained adapter."""
        return self.adapters / sha256[:12]

    @property
    def served(self) -> Path:
        """Parent of the composed revisions."""
        return self.root / "served"

    @property
    def work(self) -> Path:
        """Parent of the working directories of leased children."""
        return self.root / "work"

    def workdir(self, plan_id: int, step: str) -> Path:
        """The working directory of one step of one plan."""
        return self.work / f"{plan_id}-{step}"

    @property
    def records(self) -> Path:
        """What the base says on replayed texts; recomputed when lost."""
        return self.root / "records"

    @property
    def answers(self) -> Path:
        """What models answered to suites; kept forever."""
        return self.root / "answers"

    @property
    def certificates(self) -> Path:
        """Parent of the certificates of retracted facts."""
        return self.root / "certificates"

    def certificate(self, handle: str) -> Path:
        """The certificate of one retraction."""
        return self.certificates / f"{handle}.json"

    @property
    def restoring(self) -> Path:
        """Where a restore gathers what it then puts in place; none is under way without it."""
        return self.root / ".restoring"

    @property
    def alias(self) -> Path:
        """The pointer of the stable name."""
        return self.root / "alias.json"

    @property
    def base_record(self) -> Path:
        """What the base was when it was first served."""
        return self.root / "base.json"

    @property
    def admin_key(self) -> Path:
        """palorad's own key for the server's admin routes."""
        return self.root / "admin.key"

    @property
    def operator_key(self) -> Path:
        """The operator token, which whoever changes something on the page must give."""
        return self.root / "operator.key"

    @property
    def anchor(self) -> Path:
        """The signed head of the ledger's chain of events."""
        return self.root / "head.json"

    @property
    def anchor_key(self) -> Path:
        """The key that signs it."""
        return self.root / "head.key"

    @property
    def webhook_key(self) -> Path:
        """The key that signs notifications."""
        return self.root / "webhook.key"

    def directories(self) -> tuple[Path, ...]:
        """What is created at the first start."""
        return (
            self.root,
            self.inbox,
            self.archive,
            self.probes,
            self.adapters,
            self.served,
            self.work,
            self.answers,
            self.certificates,
        )
