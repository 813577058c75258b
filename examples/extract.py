"""Features of a folder of photographs, in one file for hloc and others: ``python extract.py PHOTOS``."""

import sys

import tiepoint as tp

found = tp.extract(sys.argv[1], "features.h5", features="sift", max_keypoints=1000)
print(found)
for name, reason in found.failed.items():
    print(f"left out {name}: {reason}")

# Without an output the features themselves are returned, of photographs in memory, too.
image = tp.read_image(next(iter(tp.io.folders.find_images([sys.argv[1]]).values())))
features = tp.extract(image, features="sift").features["0"]
print(features.keypoints[:3], features.descriptors.shape)
