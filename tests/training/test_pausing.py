"""A step that is left: nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LEFT = """
import signal, sys, torch
from tillwatch.errors import Interrupted
from tillwatch.models.backbones import build_model
from tillwatch.models.recompute import recompute_activations
from tillwatch.training import interrupts
from tillwatch.training.pausing import Pausing

interrupts._LONG_S = 0.0
network = build_model("r2plus1d_18", 2, weights=None)
recompute_activations(network)

def pause():
    raise taken.stop(taken.asked, "as it should be")

def terminate(_gradient):
    for _ in range(int(sys.argv[1])):
        signal.raise_signal(signal.SIGTERM)

def train():
    pausing = Pausing(network, pause, taken)
    weight = network.layer3[1].conv2[0][0].weight
    weight.register_post_accumulate_grad_hook(terminate)
    with pausing.watching(), pausing.step():
        network(torch.randn(2, 3, 4, 32, 32)).square().sum().backward()

taken = interrupts.Interrupts("")
try:
    with taken, taken.deferred():
        train()
except Interrupted as stopped:
    print(stopped)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself such a signal there")
@pytest.mark.parametrize(("signals", "says"), [("1", "interrupted as it should be; "), ("2", "interrupted; ")])
def test_a_step_left_on_the_way_back_does_not_crash_the_interpreter_at_its_end(signals: str, says: str) -> None:
    """Activations that are computed again belong to the interpreter, and autograd's queue outlives it."""
    ended = subprocess.run(
        [sys.executable, "-c", LEFT, signals], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, (ended.returncode, -signal.SIGSEGV, ended.stderr)
    assert ended.stdout.startswith(says)


FORKED = """
import os, signal, sys
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.loader import evaluation_loader
from tillwatch.data.transforms import eval_transform
from tillwatch.errors import Interrupted
from tillwatch.training.interrupts import Interrupts

def terminate():
    os.killpg(0, signal.SIGTERM)

transform = eval_transform((20, 24), (16, 16))
dataset = VideoFrameDataset(sys.argv[1], ["normal", "theft"], 3, transform)
loader = evaluation_loader(dataset, 2, workers=2, start_method="fork")
os.register_at_fork(after_in_parent=terminate)
try:
    with Interrupts("as it should be", 30.0):
        for _ in loader:
            print("went on")
except Interrupted as stopped:
    print(stopped)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are not forked there")
def test_a_signal_to_all_while_workers_are_forked_is_neither_lost_nor_heard_by_them(frame_root: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORKED, str(frame_root)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        start_new_session=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "interrupted; as it should be\n", "")
