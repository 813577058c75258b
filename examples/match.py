"""Match two photographs and keep what one geometry explains: ``python match.py A.jpg B.jpg``."""

import sys

import tiepoint as tp

result = tp.match(sys.argv[1], sys.argv[2], geometry="fundamental")
print(result)

sure = result.matches[result.inliers]  # points0, points1 (K, 2) in pixels, scores (K,), indices (K, 2)
for (x0, y0), (x1, y1), score in zip(sure.points0[:3], sure.points1[:3], sure.scores, strict=False):
    print(f"({x0:.1f}, {y0:.1f}) -> ({x1:.1f}, {y1:.1f})  score {score:.2f}")

result.save("matches.npz")
result.plot("matches.png", overwrite=True)  # in a notebook, result.plot() shows itself
