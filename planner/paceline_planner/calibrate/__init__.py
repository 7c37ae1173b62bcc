"""`paceline calibrate`: the step-time table of a machine nobody has measured yet, from a live engine or a CSV of steps.

`experiment` decides which steps to measure; `acquaint` checks an engine and `probe` runs them on it, over `link`;
`page` reads its metrics, `observe` the step times in them, `csv_points` a benchmark's file; `table` fits.
"""


class CalibrateError(Exception):
    """Why there is no table: cause and what to do, one line."""
