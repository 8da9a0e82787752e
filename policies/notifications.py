"""What palorad tells by itself, by the names that a receiver sees."""

from __future__ import annotations

from enum import StrEnum


class Notification(StrEnum):
    """The type of a notification; each stands for one event of the history."""

    LIVE = "plan.live"
    REJECTED = "plan.rejected"
    INCONCLUSIVE = "plan.inconclusive"
    FAILED = "plan.failed"
    NOT_LEARNT = "facts.not-learnt"
    ROLLED_BACK = "target.moved"
    RETRACTED = "fact.retracted"
    CERTIFIED = "fact.certified"
    WRONG = "answers.wrong"
    RIGHT_AGAIN = "answers.right-again"
    TROUBLE_BEGAN = "trouble.began"
    TROUBLE_LASTS = "trouble.lasts"
    TROUBLE_ENDED = "trouble.ended"
    TEST = "webhook.test"
