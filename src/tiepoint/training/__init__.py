"""Training: photographs -> pairs with exact ground truth -> weights.

Everything here needs only torch, numpy, Pillow and safetensors. Pairs are made on the training device:

- `cache`: a folder of photographs, decoded once into one memory-mapped file
- `homographies`: two views of one photograph
- `scenes`: two views of a made-up 3D scene, textured with photographs (`raycast` draws them)
- `photometric`: another light, another lens, another camera for each view
"""
