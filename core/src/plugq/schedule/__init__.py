"""The rules of schedules: when a job is submitted by the clock, and how that is kept.

Everything here is pure: what is due follows from the rule and the two moments that are passed in,
so any number of schedulers come to the same ticks and none depends on when the last job ran.
"""

from __future__ import annotations

from plugq.schedule.cron import Cron
from plugq.schedule.interval import Interval
from plugq.schedule.rule import CatchUp, Due, Rule, due
from plugq.schedule.stored import (
    Definition,
    Entry,
    Overlap,
    Source,
    Stored,
    check_name,
    check_words,
    rule_of,
    rule_text,
)

__all__ = [
    "CatchUp",
    "Cron",
    "Definition",
    "Due",
    "Entry",
    "Interval",
    "Overlap",
    "Rule",
    "Source",
    "Stored",
    "check_name",
    "check_words",
    "due",
    "rule_of",
    "rule_text",
]
