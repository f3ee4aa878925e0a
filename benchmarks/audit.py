"""What the audit finds on real clips: groups inferred with the true ones hidden, and planted copies.

    python benchmarks/audit.py CLIPS

CLIPS are class folders of videos with their groups in clips.csv. Copies are planted in a temporary folder.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tillwatch.data.catalog import Catalog, Clip, find_clips
from tillwatch.data.duplicates import Copy, find_copies
from tillwatch.data.fingerprints import take_fingerprints
from tillwatch.data.grouping import infer_groups
from tillwatch.data.splits import split_clips

KINDS = ("exact", "re-encoded", "resized", "trimmed", "mirrored", "brightened")
EACH = 10


@dataclass(frozen=True)
class Planted:
    """A copy that was put into the data: of which clip, and how made."""

    original: str
    copy: str
    kind: str


def main(clips: Path, seeds: int, plant_seed: int) -> None:
    """Prints the precision of inferred pairs, what leaks through the split, and how planted copies are found."""
    catalog = find_clips(clips, num_frames=16)
    truth = {clip.name: clip.group for clip in catalog.clips}
    started = time.perf_counter()
    prints = take_fingerprints(catalog.clips)
    read = time.perf_counter() - started
    copies = find_copies(catalog.clips, prints)
    hidden = [replace(clip, group=clip.name) for clip in catalog.clips]
    inferred = infer_groups(hidden, prints, copies)
    print(f"{len(hidden)} clips read in {read:.1f} s, compared and grouped in ", end="")
    print(f"{time.perf_counter() - started - read:.1f} s; {inferred.source}")
    grouped = [replace(clip, group=inferred.groups[clip.name]) for clip in hidden]
    print_pairs(grouped, truth)
    print_leaks(hidden, grouped, truth, seeds)
    print(f"true overlaps within the originals: {len(copies)}")
    for copy in copies:
        print(f"  {line_of(copy, truth)}")
    plant_and_find(catalog, clips, copies, plant_seed)


def print_pairs(grouped: Sequence[Clip], truth: dict[str, str]) -> None:
    """Prints how many pairs of clips share a group, and the share of them that share their source."""
    right = together = true = 0
    for index, a in enumerate(grouped):
        for b in grouped[index + 1 :]:
            same = truth[a.name] == truth[b.name]
            true += same
            together += a.group == b.group
            right += same and a.group == b.group
    groups = len({clip.group for clip in grouped})
    print(f"{groups} groups put {together} pairs together, {right / max(together, 1):.3f} of them of one source;")
    print(f"of {true} pairs of one source, {right / true:.3f} are together")


def print_leaks(hidden: Sequence[Clip], grouped: Sequence[Clip], truth: dict[str, str], seeds: int) -> None:
    """Prints the share of test clips with a clip of their source in training, for both splits."""
    for name, clips in (("our split", grouped), ("random split", hidden)):
        shares = []
        for seed in range(seeds):
            sides = split_clips(clips, seed)
            learnt = {truth[clip.name] for clip in clips if sides[clip.name] == "train"}
            tested = [clip.name for clip in clips if sides[clip.name] == "test"]
            shares.append(float(np.mean([truth[one] in learnt for one in tested])))
        print(
            f"{name}: {np.mean(shares):.3f} of the test clips have a clip of their source in training "
            f"({min(shares):.3f} to {max(shares):.3f}, {seeds} seeds)"
        )


def plant_and_find(catalog: Catalog, root: Path, within: Sequence[Copy], seed: int) -> None:
    """Plants copies of each kind in a copy of the data and prints what is found of them."""
    known = {frozenset((copy.original, copy.copy)) for copy in within}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "clips"
        shutil.copytree(root, data)
        planted = list(plant(catalog.clips, data, seed))
        everything = find_clips(data, num_frames=16).clips
        copies = find_copies(everything, take_fingerprints(everything))
    overlapping: dict[str, set[str]] = {}
    for pair in known:
        for one in pair:
            overlapping.setdefault(one, set()).update(pair - {one})
    by_pair = {frozenset((p.original, p.copy)): p for p in planted}
    source_of = {p.copy: p.original for p in planted}
    kind_of = {p.copy: p.kind for p in planted}
    found, false = Counter[str](), Counter[str]()
    told = Counter[str]()
    for copy in copies:
        pair = frozenset((copy.original, copy.copy))
        if pair in by_pair:
            found[by_pair[pair].kind] += 1
            told[by_pair[pair].kind] += (
                copy.exact if by_pair[pair].kind == "exact" else (by_pair[pair].kind in copy.transforms)
            )
            continue
        roots = sorted(source_of.get(one, one) for one in pair)
        if roots[0] == roots[1] or frozenset(roots) in known:
            continue  # a copy of what overlaps with its original anyway
        false[next((kind_of[one] for one in pair if one in kind_of), "originals")] += 1
        print(f"  false: {copy.copy} of {copy.original}, {', '.join(copy.transforms)}, {copy.overlap_s:.1f} s")
    for kind in KINDS:
        precision = found[kind] / max(1, found[kind] + false[kind])
        print(
            f"{kind:>10}: planted {EACH}, found {found[kind]}, false {false[kind]}, precision {precision:.2f}, "
            f"recall {found[kind] / EACH:.2f}, kind told {told[kind]}"
        )


def plant(clips: Sequence[Clip], data: Path, seed: int) -> Iterator[Planted]:
    """Writes copies of clips drawn at random, each of another one."""
    chosen = np.random.default_rng(seed).permutation(len(clips))[: len(KINDS) * EACH]
    for place, index in enumerate(chosen.tolist()):
        kind, original = KINDS[place // EACH], clips[index]
        name = f"{original.label}/planted{place:03d}.mp4"
        if kind == "exact":
            shutil.copy(data / original.name, data / name)
        else:
            frames, rate = read(data / original.name)
            write(changed(frames, kind), rate, data / name, "35" if kind == "re-encoded" else "23")
        yield Planted(original.name, name, kind)


def changed(frames: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Returns what a copy of a kind shows, uint8 ``(T, H, W, 3)``."""
    if kind == "resized":
        height, width = (side * 3 // 5 // 2 * 2 for side in frames.shape[1:3])
        pictures = (
            av.VideoFrame.from_ndarray(one).reformat(width, height, "rgb24", interpolation="BICUBIC") for one in frames
        )
        smaller: NDArray[np.uint8] = np.stack([picture.to_ndarray() for picture in pictures])
        return smaller
    if kind == "trimmed":
        return frames[len(frames) // 4 : len(frames) - len(frames) // 6]
    if kind == "mirrored":
        return np.ascontiguousarray(frames[:, :, ::-1])
    if kind == "brightened":
        brighter: NDArray[np.uint8] = np.clip(frames * 1.15 + 25, 0, 255).astype(np.uint8)
        return brighter
    return frames


def read(path: Path) -> tuple[NDArray[np.uint8], Fraction]:
    """Returns all frames and their rate."""
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        frames: NDArray[np.uint8] = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return frames, Fraction(rate or 25)


def write(frames: NDArray[np.uint8], rate: Fraction, path: Path, crf: str) -> None:
    """Writes H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": crf, "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *(side // 2 * 2 for side in frames.shape[1:3]), "yuv420p"
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[: stream.height, : stream.width])))
            )
        container.mux(stream.encode())


def line_of(copy: Copy, truth: dict[str, str]) -> str:
    """Says what overlaps with what."""
    what = "exact" if copy.exact else ", ".join(copy.transforms)
    same = "one source" if truth[copy.original] == truth[copy.copy] else "DIFFERENT SOURCES"
    return f"{copy.copy} and {copy.original}: {what}, {copy.overlap_s:.1f} s; {same}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--plant-seed", type=int, default=0)
    options = parser.parse_args()
    main(options.clips, options.seeds, options.plant_seed)
