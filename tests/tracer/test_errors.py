"""Where a warning points."""

from __future__ import annotations

import pytest

from tracer.errors import TracingWarning, warn


def of(package, called):
    """Return a function of a package that calls another one."""
    names = {"__name__": f"{package}.module", "called": called}
    exec("def function(*text): called(*text)", names)
    return names["function"]


@pytest.mark.parametrize("packages", ["tracer", "tracer torch tracer", "torch tracer tracer"])
def test_a_warning_points_at_the_line_that_called_the_package(packages):
    function = warn
    for package in packages.split():
        function = of(package, function)
    with pytest.warns(TracingWarning, match="said") as found:
        function("said")
    assert (len(found), found[0].filename) == (1, __file__)
