"""Training: photographs -> pairs with exact ground truth -> weights.

The path of a photograph, from ``tiepoint train matcher`` to the loss:

1. `runs.matcher` turns what is asked for into a `runs.task.Task`, which opens the photographs (`data.photographs`:
   decoded once, into one memory-mapped file) and runs the loop.
2. `stream` calls `pairs.steps` for the batch of each step, in worker processes.
3. `pairs.maker` makes it: it draws photographs, makes two views of each (`data.homographies`, or `data.scenes`: two
   views of a rendered 3D scene), changes their light (`data.photometric`), extracts features and labels them
   (`data.ground_truth`).
4. `loop.fit` gives the batch to the objective (`objectives.lightglue`), whose output is the loss (`objectives.losses`).

An extractor takes the same path by way of `runs.features`, `pairs.views` and `objectives.cairn`; SuperPoint by way of
`runs.superpoint`, `pairs.corners` and `objectives.superpoint`. Each of the three modules in `runs` has one function,
``train(settings, report, stop)``, with one settings object.

Everything here needs only torch, numpy, Pillow and safetensors. Pairs are made on the training device where the
extractor runs there, else by worker processes.
"""
