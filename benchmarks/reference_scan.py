"""The plain scan, as everyone writes it: what the speed of ours is measured against.

    python benchmarks/reference_scan.py FOOTAGE.mp4 --seconds 30

OpenCV, every frame, windows of 16 frames each 8 after the last, fp32, a network of torchvision's as it comes, one line
a window. Nothing of Tillwatch is used, and the weights are random: they cost what learnt ones do.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models.video import r2plus1d_18

WINDOW, STRIDE = 16, 8


def plain_network(classes: int = 2) -> nn.Module:
    """Returns r2plus1d_18 with a head for so many classes, in evaluation mode."""
    network = r2plus1d_18(weights=None)
    network.fc = nn.Linear(network.fc.in_features, classes)
    ready: nn.Module = network.eval()
    return ready


def plain_scan(video: Path, network: nn.Module, seconds: float | None = None, size: int = 112) -> float:
    """Prints the score of each window, and returns how many seconds of footage were scanned.

    Args:
        video: the file.
        network: takes float32 ``(1, 3, 16, size, size)``.
        seconds: of footage after which to stop; None scans all.
        size: pixels each way.
    """
    capture = cv2.VideoCapture(str(video))
    fps = capture.get(cv2.CAP_PROP_FPS)
    mean = np.array([0.43216, 0.394666, 0.37645], np.float32)
    std = np.array([0.22803, 0.22145, 0.216989], np.float32)
    frames: deque[NDArray[np.float32]] = deque(maxlen=WINDOW)
    number = 0
    while seconds is None or number < seconds * fps:
        read, frame = capture.read()
        if not read:
            break
        small = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), (size, size))
        frames.append(((small.astype(np.float32) / 255 - mean) / std).astype(np.float32))
        number += 1
        if len(frames) == WINDOW and (number - WINDOW) % STRIDE == 0:
            clip = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None]
            with torch.no_grad():
                score = network(clip).softmax(1)[0, 1].item()
            print(f"{(number - WINDOW) / fps:.2f} s to {number / fps:.2f} s: {score:.4f}", flush=True)
    capture.release()
    return float(number / fps)


def main() -> None:
    """Scans and prints how many times as fast as it was recorded that went, start-up apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--seconds", type=float, help="of footage to scan; all unless given")
    parser.add_argument("--size", type=int, default=112)
    options = parser.parse_args()
    network = plain_network()
    started = time.perf_counter()
    scanned = plain_scan(options.video, network, options.seconds, options.size)
    spent = time.perf_counter() - started
    print(f"{scanned:.2f} s of footage in {spent:.2f} s: {scanned / spent:.3f} times real time")


if __name__ == "__main__":
    main()
