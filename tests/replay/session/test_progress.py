"""What is shown while work goes on: a bar on a terminal, a line a minute in a file."""

from io import StringIO

import pytest

from replay import progress
from replay.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    return now


def ten_minutes(clock, **how):
    """Work for ten minutes and a half in steps of 10 s, to the second of a line."""
    with Progress(**how) as shown:
        advance = shown.task("splitting steps", 63)
        for _ in range(63):
            clock[0] += 10
            advance()


def test_a_file_gets_a_line_a_minute(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream := StringIO())
    ten_minutes(clock, enabled=True)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 8  # one at each 70 s, none at the end
    assert lines[0] == "splitting steps: 7 of 63, 9 min left"
    assert lines[-1] == "splitting steps: 56 of 63, 70 s left"


def test_a_terminal_gets_a_bar_after_two_seconds(clock, monkeypatch):
    class Screen(StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(enabled=True) as shown:
        advance = shown.task("splitting steps", 60)
        clock[0] += 1
        advance()
        assert not screen.getvalue()
        clock[0] += 2
        advance()
        assert "splitting steps" in screen.getvalue()
        assert "2/60" in screen.getvalue()


def test_nothing_is_shown_unasked(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream := StringIO())
    ten_minutes(clock, enabled=False)
    assert not stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.123, "0.12 s"), (40, "40 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
