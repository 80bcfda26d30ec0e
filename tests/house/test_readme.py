"""The README's quickstart runs as it stands."""

from __future__ import annotations

import re

from tests.helpers.places import ROOT


def test_quickstart(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "[" in capsys.readouterr().out
    assert (tmp_path / "run.h5").exists()


def test_links_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
