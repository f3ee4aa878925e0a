"""The plain training loop, as everyone writes it: what our speed is measured against.

    python benchmarks/reference.py FRAMES --steps 6

PIL and torchvision transforms frame by frame (each frame gets its own crop and flip, as such scripts do), fp32,
default memory layout, one process. Nothing of Tillwatch is used; FRAMES is ``<class>/<video>/*.jpg``.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import transforms
from torchvision.models.video import r2plus1d_18


class PlainDataset(Dataset[tuple[torch.Tensor, int]]):
    """Frame folders, each frame opened, transformed and stacked: float32 ``(3, T, crop, crop)``."""

    def __init__(self, root: Path, num_frames: int, resize: int = 128, crop: int = 112) -> None:
        self.classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        self.samples = [
            (folder, label)
            for label, name in enumerate(self.classes)
            for folder in sorted((root / name).iterdir())
            if folder.is_dir()
        ]
        self.num_frames = num_frames
        self.transform = transforms.Compose(
            [
                transforms.Resize((resize, resize)),
                transforms.RandomCrop(crop),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        folder, label = self.samples[index]
        paths = sorted(folder.glob("*.jpg"))
        indices = np.linspace(0, len(paths) - 1, self.num_frames, dtype=int)
        frames = [self.transform(Image.open(paths[i]).convert("RGB")) for i in indices]
        return torch.stack(frames, dim=1), label


class PlainTraining:
    """The loop's state, so that it can be advanced a few steps at a time beside another.

    Args:
        root: class folders of frame folders.
        num_frames, batch_size: of each step.
        device: "cpu" or "cuda".
    """

    def __init__(self, root: Path, num_frames: int = 32, batch_size: int = 4, device: str = "cpu") -> None:
        self.dataset = PlainDataset(root, num_frames)
        labels = [label for _, label in self.dataset.samples]
        counts = Counter(labels)
        sampler = WeightedRandomSampler([1 / counts[label] for label in labels], 10**6, replacement=True)
        self.batches = iter(DataLoader(self.dataset, batch_size, sampler=sampler))
        self.model = r2plus1d_18(weights=None)
        self.model.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(self.model.fc.in_features, 2))
        self.device = torch.device(device)
        self.model.to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.model.train()

    def step(self) -> int:
        """Loads a batch and trains on it; returns how many clips it had."""
        clips, labels = next(self.batches)
        loss = nn.functional.cross_entropy(self.model(clips.to(self.device)), labels.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        loss.item()
        return len(labels)


def main() -> None:
    """Prints the clips a second of a few steps, after one that warms up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    training = PlainTraining(options.frames, options.num_frames, options.batch_size)
    training.step()
    started, clips = time.perf_counter(), 0
    for _ in range(options.steps):
        clips += training.step()
    seconds = time.perf_counter() - started
    print(f"{clips / seconds:.3f} clips/s, {seconds / clips:.2f} s a clip, loading included")


if __name__ == "__main__":
    main()
