"""Shared set-up: one thread, so that runs are the same everywhere."""

import torch

torch.set_num_threads(1)
