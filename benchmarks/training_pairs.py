"""Look at training pairs, and measure how many are made in a second.

    python benchmarks/training_pairs.py --images ../shared/data/train --out /tmp/pairs

writes one PNG for each kind of pair (view 0 and view 1 side by side) and prints a table of pairs/s, each step of the
work by itself. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from tiepoint.training.data import homographies, scenes
from tiepoint.training.data.photographs import PhotoCache, build_cache
from tiepoint.training.data.photometric import PhotometricConfig, augment
from tiepoint.training.data.scene_layouts import SceneConfig

KINDS = ("room", "street", "facade", "terrain", "table")


def save_sheet(pairs: Any, path: Path, columns: int = 3) -> None:
    """Write pairs as a grid of pictures, view 1 to the right of its view 0."""
    rows = torch.cat([pairs.images0, pairs.images1], 3)
    rows = rows[: len(rows) // columns * columns].unflatten(0, (-1, columns))  # (rows, columns, 3, h, 2 w)
    sheet = rows.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
    PIL.Image.fromarray((sheet * 255).byte().permute(1, 2, 0).cpu().numpy()).save(path)


def relit(pairs: Any, generator: torch.Generator) -> Any:
    """Return the pairs with another light and another camera for each view."""
    strong = PhotometricConfig.preset("strong")
    images = [augment(images, strong, generator) for images in (pairs.images0, pairs.images1)]
    return replace(pairs, images0=images[0], images1=images[1])


def pairs_per_second(make: Callable[[], Any], count: int, device: torch.device, repeats: int = 5) -> float:
    """Median over several batches, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        make()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return count / sorted(times[1:])[repeats // 2]


def main() -> None:
    """Draw the sheets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets and the cache")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="pairs made together; default 8 on a CPU, 64 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    count = options.batch or (64 if device.type == "cuda" else 8)
    options.out.mkdir(parents=True, exist_ok=True)
    cache: PhotoCache = build_cache(options.images, options.out / "photos.cache")
    print(
        f"{len(cache)} photographs, {len(cache.skipped)} skipped; {device}, {options.threads} thread(s), batch {count}"
    )
    generator = torch.Generator().manual_seed(0)

    def photos(number: int, size: tuple[int, int]) -> torch.Tensor:
        return cache.sample(cache.draw(number, generator), size, generator, device)

    anyhow = {"max_roll": math.pi, "max_scale": 4.0}
    for name, changed in (("standard", {}), ("roll360", anyhow)):
        views = homographies.HomographyConfig((240, 320), **changed)
        pairs = homographies.make_pairs(photos(12, (480, 640)), views, generator)
        save_sheet(pairs, options.out / f"homographies-{name}.png")
        save_sheet(relit(pairs, generator), options.out / f"homographies-{name}-relit.png")
    for kind in KINDS:
        config = SceneConfig((240, 320), kinds=(kind,))
        pairs = scenes.make_pairs(photos(48, (256, 256)), 12, config, generator)
        save_sheet(pairs, options.out / f"scenes-{kind}.png")
    save_sheet(relit(pairs, generator), options.out / f"scenes-{KINDS[-1]}-relit.png")

    large = photos(count, (480, 640))
    textures = photos(4 * count, (256, 256))
    standard = homographies.HomographyConfig((360, 480))
    roll360 = homographies.HomographyConfig((360, 480), **anyhow)
    pairs = homographies.make_pairs(large, standard, generator)
    table: dict[str, Callable[[], Any]] = {
        "photographs from the cache, 640 x 480": lambda: photos(count, (480, 640)),
        "homographies, standard, 480 x 360": lambda: homographies.make_pairs(large, standard, generator),
        "homographies, roll360, 480 x 360": lambda: homographies.make_pairs(large, roll360, generator),
        "photometric changes of both views, 480 x 360": lambda: relit(pairs, generator),
        "four textures a scene from the cache, 256 x 256": lambda: photos(4 * count, (256, 256)),
    }
    for height, width in ((240, 320), (480, 640)):
        config = SceneConfig((height, width))
        table[f"scenes, {width} x {height}"] = lambda c=config: scenes.make_pairs(textures, count, c, generator)
    for name, make in table.items():
        print(f"{name:50} {pairs_per_second(make, count, device):8.1f} pairs/s", flush=True)


if __name__ == "__main__":
    main()
