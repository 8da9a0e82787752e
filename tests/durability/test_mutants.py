"""The fuzz machine finds what it is for; the long run tries every mutant there is."""

from __future__ import annotations

import pytest

from benchmarks.durability import mutants
from benchmarks.durability.mutations import MUTATIONS

pytestmark = [pytest.mark.durability, pytest.mark.timeout(300)]

QUICK = ("folder not synced", "ledger not synced", "admission not told")


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_found(name: str) -> None:
    (chosen,) = [mutation for mutation in MUTATIONS if mutation.name == name]
    (result,) = mutants.attempt([chosen], at_once=1)
    assert result.found, result.said


def test_every_mutation_still_fits_the_source() -> None:
    for mutation in MUTATIONS:
        text = (mutants.ROOT / mutation.file).read_text()
        assert text.count(mutation.old) == 1, mutation.name
