"""Compare combinations of extractor and matcher on pairs with ground truth: ``python evaluate.py DATA``."""

import sys

import tiepoint as tp

for run in tp.evaluate(sys.argv[1], ["orb+nearest", "sift+nearest"], limit=3, max_keypoints=1000):
    for line in tp.evaluation.summarise(run):
        print(run.label, line["set"], f"precision {line['precision']:.3f}")
