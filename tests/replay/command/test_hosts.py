"""A job on two hosts: network namespaces with addresses of their own, where they may be made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from replay import Influence
from tests.helpers.command import started

ADDRESS = "10.213.{}.{}"
ASKED = ["-m", "--", "replay", "--log", "logs/run.h5", "--task", "work.py:task", "--test", "all"]
_NAMED = "hostname {}; mount --bind hosts /etc/hosts;"
FEW = ["--method", "tracin", "--out", "out.h5"]


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Return the addresses of two hosts that can reach each other, by their names."""
    number = os.getpid() % 250
    names = [f"tracin{number}a", f"tracin{number}b"]
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need ip and root")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for k, name in enumerate(names):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{ADDRESS.format(number, k + 1)}/24", "dev", name)
            for device in (name, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield {name: ADDRESS.format(number, k + 1) for k, name in enumerate(names)}
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces: {error.stderr.decode()[:80]}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def on(name, hosts, *, first=""):
    """Start a host's torchrun, after some shell commands of its own."""
    meeting = ["--rdzv-endpoint", f"{next(iter(hosts.values()))}:29531", "--rdzv-id", "j"]
    meeting += ["--rdzv-backend", "c10d", "--local-addr", hosts[name]]
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", *meeting]
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, *ASKED, *FEW]
    own = ["unshare", "-m", "-u", "sh", "-c", f'{_NAMED.format(name)} {first} exec "$@"', "sh"]
    code = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    return started(["-c", code, "ip", "netns", "exec", name, *own, *command])


def placed(folder, hosts):
    """Let both hosts know each other by name, and the log stand where one can be hidden."""
    known = {"localhost": "127.0.0.1", **hosts}
    (folder / "hosts").write_text("".join(f"{a} {name}\n" for name, a in known.items()))
    (folder / "logs").mkdir()
    (folder / "run.h5").rename(folder / "logs" / "run.h5")


def test_two_hosts_share_a_job(folder, hosts):
    placed(folder, hosts)
    jobs = [on(name, hosts) for name in hosts]
    ended = [job.communicate(timeout=200) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], ended
    assert Influence.load("out.h5").test_ids == ["a14", "a15", "a16", "a17", "a18", "a19"]
    assert ended[0][1].count("wrote out.h5") + ended[1][1].count("wrote out.h5") == 1


def test_a_log_that_a_host_does_not_see_is_an_error_in_its_name(folder, hosts):
    placed(folder, hosts)
    hides = ["", "mount -t tmpfs none logs;"]
    jobs = [on(name, hosts, first=hidden) for name, hidden in zip(hosts, hides, strict=True)]
    said = "".join(job.communicate(timeout=200)[1] for job in jobs)
    name = [*hosts][1]
    assert re.search(rf"Error: on {name}, process .: there is no log logs/run.h5", said), said
    assert not (folder / "out.h5").exists()
