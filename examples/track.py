"""The path of a moving camera, from a video or a folder of frames: ``python track.py SOURCE``."""

import sys

import tiepoint as tp


def show(state, frame) -> None:
    """Print one line for each frame."""
    print(frame.name, state.status, f"{state.inliers} inliers")


path = tp.track(sys.argv[1], "path.txt", progress=show)
print(path)
