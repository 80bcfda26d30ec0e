"""The report page of a result: one self-contained file, nothing fetched."""

try:
    import jinja2 as _jinja2  # noqa: F401
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as _error:
    raise ImportError(
        "a report needs matplotlib and jinja2, which are not installed; pip install "
        "'tracin-replay[report]'"
    ) from _error

from replay.report.page import page, require_free, write
from replay.report.study import RunFacts, Study, run_facts

__all__ = ["RunFacts", "Study", "page", "require_free", "run_facts", "write"]
