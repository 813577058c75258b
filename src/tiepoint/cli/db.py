"""``tiepoint db``: look into a database, and exchange features, matches and pairs with hloc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import completion
from .console import JsonOption, print_json, print_table, say

app = typer.Typer(help="Look into a COLMAP database; exchange its content with hloc.", no_args_is_help=True)

DatabaseArgument = Annotated[Path, typer.Argument(metavar="DATABASE", help="A COLMAP database, ours or COLMAP's own.")]


@app.command("info")
def info(database: DatabaseArgument, json: JsonOption = False) -> None:
    """Print what a database holds."""
    import numpy as np

    from ..mapping.store import Store

    with Store.open(database, create=False, read_only=True) as store:
        images, have = store.images(), sorted(store.has_features())
        counts = [len(store.features(image_id, descriptors=False)) for image_id in have]
        verified = list(store.verified_pairs().values())
        found: dict[str, Any] = {
            "images": len(images),
            "cameras": len({image.camera_id for image in images}),
            "known focal lengths": sum(image.camera.has_prior_focal_length for image in images),
            "positions": sum(image.position is not None for image in images),
            "features": store.features(have[0], descriptors=False).extractor if have else "none",
            "images with features": len(have),
            "keypoints per image": round(float(np.mean(counts))) if counts else 0,
            "matched pairs": len(store.matched_pair_ids()),
            "verified pairs": len(verified),
            "inliers per verified pair": round(float(np.mean(verified))) if verified else 0,
        }
    if json:
        print_json(found)
    else:
        print_table(("", str(database)), [(name, str(value)) for name, value in found.items()])


@app.command("import")
def import_(
    database: Annotated[Path, typer.Argument(metavar="DATABASE", help="The database; created if it does not exist.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of photographs to enter first, with cameras from their EXIF.")
    ] = None,
    features: Annotated[Path | None, typer.Option(help="hloc's features (.h5).")] = None,
    extractor: Annotated[
        str | None,
        typer.Option(autocompletion=completion.extractors, help="What made them: sift, superpoint, aliked-n16 …"),
    ] = None,
    matches: Annotated[Path | None, typer.Option(help="hloc's matches (.h5).")] = None,
    verify: Annotated[bool, typer.Option(help="Also find the two-view geometry of the matches.")] = True,
) -> None:
    """Read photographs, features and matches into a database.

    Running it again changes nothing. New features of an image replace its old features and matches.
    """
    from ..errors import ArgumentError
    from ..mapping.exchange import hloc
    from ..mapping.steps.images import new_images
    from ..mapping.steps.verify import verify_into
    from ..mapping.store import Store, pairs_of

    if images is None and features is None and matches is None:
        raise ArgumentError("nothing to import: give --images, --features or --matches")
    if (features is None) != (extractor is None):
        raise ArgumentError("--features and --extractor go together: hloc's files do not say what made them")
    with Store.open(database, create=images is not None) as store:
        if images is not None:
            found, skipped = new_images(images)
            store.add_images(found)
            for name, why in skipped:
                say(f"tiepoint: {name}: left out: {why}")
            print(f"entered {len(found)} photographs")
        if features is not None and extractor is not None:
            unknown = hloc.import_features(store, features, extractor)
            _name_unknown(unknown, features)
            print(f"read features; {len(store.has_features())} images have some")
        if matches is not None:
            _name_unknown(hloc.import_matches(store, matches), matches)
            print(f"read matches; {len(store.matched_pair_ids())} pairs are matched")
            if verify:
                count = verify_into(store, pairs_of(store.matched_pair_ids()))
                print(f"verified {count} pairs; {len(store.verified_pairs())} in all have a two-view geometry")


@app.command("export")
def export(
    database: DatabaseArgument,
    features: Annotated[Path | None, typer.Option(help="Write all features here (.h5, hloc's layout).")] = None,
    matches: Annotated[Path | None, typer.Option(help="Write all matches here (.h5, hloc's layout).")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Write the names of all verified pairs here, two a line.")] = None,
) -> None:
    """Write features, matches and pairs of a database as hloc reads them."""
    from ..errors import ArgumentError
    from ..io.files import check_output
    from ..mapping.exchange import hloc
    from ..mapping.store import Store

    if features is None and matches is None and pairs is None:
        raise ArgumentError("nothing to export: give --features, --matches or --pairs")
    for path, suffixes in ((features, (".h5",)), (matches, (".h5",)), (pairs, None)):
        if path is not None:
            check_output(path, suffixes, inputs=[database])
    with Store.open(database, create=False, read_only=True) as store:
        if features is not None:
            print(f"wrote the features of {hloc.export_features(store, features)} images to {features}")
        if matches is not None:
            print(f"wrote the matches of {hloc.export_matches(store, matches)} pairs to {matches}")
        if pairs is not None:
            verified = sorted(store.verified_pairs())
            hloc.write_pairs(store, pairs, verified)
            print(f"wrote {len(verified)} pairs to {pairs}")


def _name_unknown(names: list[str], path: Path) -> None:
    if names:
        say(f"tiepoint: {path}: {len(names)} entries left out, unknown here, the first of them {names[0]}")
