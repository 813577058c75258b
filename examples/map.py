"""Cameras and points from a folder of photographs: ``python map.py PHOTOS``."""

import sys

import tiepoint as tp

result = tp.map(sys.argv[1], "scene")  # run it again to resume
print(result.choice)
for quality in result.scene.qualities:
    print(quality)

model = result.scene.models[0]  # a pycolmap.Reconstruction
for image in model.images.values():
    print(image.name, image.projection_center())
