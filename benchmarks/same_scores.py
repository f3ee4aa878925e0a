"""Whether a run's model scores a clip alike on every path: the run's own figures, frame folders, source videos.

    python benchmarks/same_scores.py RUN FRAMES VIDEOS --clips 60

FRAMES is what the run was trained on, VIDEOS what FRAMES was extracted from. JPEG and scaling lie between a
frame folder and its video, so those scores differ a little; the first two must not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tillwatch.files import read_csv
from tillwatch.models.saved import load_model


def main() -> None:
    """Prints the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--clips", type=int, default=60)
    options = parser.parse_args()
    model = load_model(options.run)
    event_columns = [f"p_{name}" for name in model.spec.event]
    written = {
        row["path"]: sum(float(row[column]) for column in event_columns)
        for row in read_csv(options.run / "predictions.csv")
    }
    gaps = [abs(model.predict(options.frames / name).event_probability - p) for name, p in written.items()]
    print(f"frame folders against predictions.csv: {len(gaps)} clips, largest difference {max(gaps):.1e}")

    rows = read_csv(options.frames / "clips.csv")
    rows = [rows[index] for index in np.linspace(0, len(rows) - 1, min(options.clips, len(rows)), dtype=int)]
    from_frames, from_video = [], []
    for row in rows:
        source = next((options.videos / row["label"]).glob(f"{Path(row['path']).name}.*"))
        from_frames.append(model.predict(options.frames / row["path"]).event_probability)
        from_video.append(model.predict(source).event_probability)
    frames, video = np.array(from_frames), np.array(from_video)
    clear = np.abs(frames - 0.5) > 0.05
    same = (frames > 0.5) == (video > 0.5)
    print(
        f"source videos against frame folders: {len(rows)} clips, event probability differs by "
        f"{np.abs(frames - video).mean():.4f} in the mean, {np.abs(frames - video).max():.4f} at most; spread of the "
        f"probabilities {frames.std():.3f}"
    )
    correlation = np.corrcoef(frames, video)[0, 1]
    print(
        f"correlation {correlation:.3f}; above one half: {(frames > 0.5).sum()} by frames, "
        f"{(video > 0.5).sum()} by video"
    )
    print(f"same label in {same[clear].sum()} of {clear.sum()} clips more than 0.05 from one half, {same.sum()} of all")


if __name__ == "__main__":
    main()
