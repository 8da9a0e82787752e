"""Renew what the documents quote: the configuration's keys, the demonstration's transcript."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.config.reference import reference

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
CONFIGURATION = DOCS / "configuration.md"
TRANSCRIPT = DOCS / "demo.txt"
MARK = re.compile(r"(<!-- the rest is .*? -->\n).*", re.DOTALL)
DEMO = re.compile(r"<!-- demo -->.*?<!-- /demo -->", re.DOTALL)


def configuration() -> str:
    """docs/configuration.md with the tables of the settings that are."""
    return MARK.sub(lambda m: f"{m[1]}\n{reference()}", CONFIGURATION.read_text())


def readme() -> str:
    """README.md with the transcript of `docs/demo.txt` and its picture, once there are some."""
    said = "(`make demo-docs` writes its transcript and picture here; no complete run is kept yet.)"
    if TRANSCRIPT.exists():
        said = (
            f"```console\n$ make demo\n{TRANSCRIPT.read_text().rstrip()}\n```\n\n"
            "![Recall and reasoning over the revisions](docs/img/demo.png)"
        )
    return DEMO.sub(lambda _: f"<!-- demo -->\n{said}\n<!-- /demo -->", README.read_text())


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration())
    README.write_text(readme())
