"""The conformance kit as a whole: what ``plugq conformance`` runs and what came of it.

:mod:`.target` finds what shall be tested, :mod:`.suite` has the contract classes of plugins that
are named, :mod:`.session` runs pytest, and :mod:`.report` judges.
"""
