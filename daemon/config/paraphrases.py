"""What [intake] and [train] say about paraphrases, as the one policy that everything asks."""

from __future__ import annotations

from daemon.config.sections import IntakeSettings
from daemon.config.training import TrainSettings
from policies.facts.paraphrases import ParaphrasePolicy


def paraphrase_policy(
    intake: IntakeSettings, train: TrainSettings | None = None
) -> ParaphrasePolicy:
    """The policy; without `train` it is good for admission, which only [intake] decides."""
    train = train or TrainSettings()
    return ParaphrasePolicy(
        source=intake.paraphrase_source,
        at_admission=intake.min_paraphrases,
        at_training=train.paraphrases,
        prefixed=train.prefixed,
        by_model=intake.model_paraphrases,
        model_requests=intake.model_paraphrase_budget,
    )
