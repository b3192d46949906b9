"""The agenda: what is due, soonest first, and what was set anew."""

from __future__ import annotations

from plugq.broker.agenda import Agenda


def test_names_fall_due_in_order_and_stay_due_until_they_are_set_anew() -> None:
    agenda = Agenda()
    assert agenda.first() is None
    for name, at in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        agenda.set(name, at)
    assert agenda.first() == 1.0
    assert agenda.due(2.0) == ["a", "b"]
    assert agenda.due(2.0) == ["a", "b"]
    agenda.set("a", 5.0)
    agenda.set("b", None)
    assert agenda.due(4.0) == ["c"]
    assert agenda.items() == {"a": 5.0, "c": 3.0}


def test_a_name_that_is_set_again_and_again_takes_the_place_of_one() -> None:
    agenda = Agenda()
    for number in range(1000):
        agenda.set("a", float(number))
        agenda.set("b", 5000.0)
    assert agenda.first() == 999.0
    assert agenda.due(1000.0) == ["a"]
    assert len(agenda._heap) < 200
