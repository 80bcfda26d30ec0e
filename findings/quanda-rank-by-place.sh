#!/usr/bin/env bash
# quanda's mislabeling metric adds 0.0001 for each place in the data set to the self-influence that it ranks.
# Versions: quanda 0.5.0, torch 2.13.0.
# One would guess: examples are ranked by the self-influence that the metric is given, and equal ones in any order.
# What happens: to break ties, position * 1e-4 is added before sorting, whatever the scale of the scores. Of 10,000
#   examples the last one gains 1.0, so scores of the usual 1e-3 to 1e-1 are ranked by place, the last example first.
# Output seen:
#   quanda 0.5.0, torch 2.13.0
#   the 100 with ten times the self-influence of the others: 0 of them among the first 100; times 1e6: 100
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile torch==2.13.0 datasets==5.2.0 pyyaml==6.0.4
venv/bin/pip install --quiet --no-compile --no-deps quanda==0.5.0
HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys
import types
from importlib.metadata import version
from importlib.util import find_spec

import torch

# the metric's own modules, without the rest of quanda, which wants transformers and torchvision
root = find_spec("quanda").submodule_search_locations[0]
for name in ("", ".metrics", ".metrics.downstream_eval", ".explainers", ".utils"):
    package = types.ModuleType(f"quanda{name}")
    package.__path__ = [root + name.replace(".", "/")]
    sys.modules[package.__name__] = package
sys.modules["quanda.explainers.base"] = types.SimpleNamespace(Explainer=object)  # none is given
from quanda.metrics.downstream_eval.mislabeling_detection import MislabelingDetectionMetric

versions = ", ".join(f"{p} {version(p).split('+')[0]}" for p in ("quanda", "torch"))
data = torch.utils.data.TensorDataset(torch.zeros(10_000, 1))
wrong = list(range(100))
own = torch.full((10_000,), 0.005)
own[wrong] = 0.05


def found(scale):
    metric = MislabelingDetectionMetric(
        torch.nn.Linear(1, 1), data, wrong, precomputed_self_influence=own * scale
    )
    return int(metric.compute()["success_arr"][:100].sum())


seen = found(1.0), found(1e6)
print(versions)
print("the 100 with ten times the self-influence of the others: "
      f"{seen[0]} of them among the first 100; times 1e6: {seen[1]}")
if versions != "quanda 0.5.0, torch 2.13.0" or seen != (0, 100):
    sys.exit("the finding no longer holds")
PY
