"""Where photographs were taken, in a map that map.py made: ``python localize.py SCENE PHOTO...``."""

import sys

import tiepoint as tp

for result in tp.localize(sys.argv[2:], sys.argv[1], output=["poses.json"]):
    print(result.name, result.problem or result.pose.centre)
