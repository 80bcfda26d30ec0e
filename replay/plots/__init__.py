"""Figures of results: functions that return a matplotlib ``Figure``.

None opens a window, needs a display or changes matplotlib's settings. ``figure.savefig("x.pdf")``
writes one; in a notebook, ``%matplotlib inline`` shows them.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as _error:
    raise ImportError(
        "replay.plots draws with matplotlib, which is not installed; pip install "
        "'tracin-replay[report]'"
    ) from _error

from replay.plots.agreement import agreement, scatter
from replay.plots.checkpoint_error import checkpoint_error
from replay.plots.completeness import completeness
from replay.plots.over_time import over_time
from replay.plots.ranking import ranking
from replay.plots.self_influence import self_influence
from replay.plots.taylor import taylor_gap
from replay.plots.truth import against_truth, foretold

__all__ = [
    "against_truth",
    "agreement",
    "checkpoint_error",
    "completeness",
    "foretold",
    "over_time",
    "ranking",
    "scatter",
    "self_influence",
    "taylor_gap",
]
