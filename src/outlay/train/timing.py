"""How many answers of a model are timed, and how often; imports no library."""

N_TIMED_ROWS = 32
"""Rows that `outlay.train.answering.milliseconds_a_row` times at most."""
TIMING_ROUNDS = 4
"""How often it times each of them."""
TIMING_SECONDS = 1.0
"""Seconds after which it times no further row."""
