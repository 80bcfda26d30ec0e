"""Lists of test IDs that are something else."""

from __future__ import annotations

import pytest

from tests.helpers.command import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--test", "a14"), "a14' cannot be read: No such file or directory. 'a14' is a test ID: "),
        (("--test", "a14"), "write --test-id a14."),
        (("--test", "none"), "cannot be read: No such file or directory; check the path, or name"),
        (("--test", "."), "the list of test IDs '.' cannot be read: Is a directory; check"),
        (
            ("--test", "run.h5"),
            "'run.h5' is not a text in UTF-8, but a list of test IDs is",
        ),
        (("--test", "long.txt"), "line 1: the test set has no example 'xxxx"),
        (("--test-id", "y" * 10**5), "--test-id 'yyyy"),
        (("--test", "z" * 10**5), "the list of test IDs 'zzzz"),
    ],
)
def test_what_is_no_list(folder, capsys, arguments, message):
    (folder / "long.txt").write_text("x" * 10**6)
    code, out, err = run(capsys, "--log", "run.h5", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert len(err) < 600
