"""A reference model of a storage, and a machine that plays histories to a storage and to it.

The model (``looking.Model``, on ``steering``, ``running`` and ``jobs``) is pure and synchronous:
lists, dictionaries and scans, told after each call what the storage was asked and what it
answered. It raises ``Disagreement``, whose message begins with the broken promise (``I5: …``), or
follows the storage where the protocol leaves something open: sequences, tokens and versions that
only have to rise, which of the jobs a bounded sweep takes, when a due job is shown as queued, and
when a job is removed whose retention has passed. Queues with limiters are not modelled.

``machine`` makes up histories with Hypothesis; ``player`` plays them, step by step, and looks at
everything after each step; in the end it runs all that is left. Every storage contract does so in
``test_every_history_agrees_with_the_model``. Its short form takes the same ``model_steps`` steps
each time, from ``model_seed``. A long run takes others and prints their seeds; here it is that of
a subclass in ``tests/test_mine.py``::

    PLUGQ_MODEL_STEPS=20000 pytest -s --timeout=0 tests/test_mine.py -k every_history
    PLUGQ_MODEL_STEPS=2000 PLUGQ_MODEL_SEED=7 pytest -s tests/test_mine.py -k every_history

A step is a verb and plain arguments (``steps``), and what fails is told as JSON, shortened:
``[["submit", {"jobs": [{"id": "a"}]}], ["claim", {}]]``. To keep it as a regression that every
storage is held to, put it into a file ``plugq/testing/histories/<what-it-shows>.json``;
``test_histories_that_once_went_wrong_agree_with_the_model`` finds it there.
"""
