"""What can be chosen on the page, with one line each that says what it means."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from .. import features as extractors
from .. import matchers, weights
from ..effort import Effort
from ..io.decoding import SUFFIXES
from ..io.video import VIDEO_SUFFIXES
from ..mapping.quality import Quality
from .uploads import Limits

FEATURES = {
    "auto": "The best whose weights are on this machine and may be used for anything.",
    "cairn": "Our own learned features: quick without a graphics card, at any roll of the camera.",
    "sift": "The classic: precise and quick, for photographs taken in similar light.",
    "aliked-n16": "Learned; copes with changes of light and season; slower.",
    "disk": "Learned, many points; slow without a graphics card.",
    "xfeat": "Learned, made for speed; less precise.",
    "orb": "The quickest; for small changes of view only.",
}
MATCHERS = {
    "auto": "The best one for these features.",
    "lightglue": "A network that looks at all points of both photographs: finds more, and says when nothing is shared.",
    "nearest": "Pairs the most similar descriptors: quick, for easy photographs.",
}
EFFORTS: dict[Effort, str] = {
    "fast": "One pass; seconds.",
    "auto": "Tries harder only while the result does not convince.",
    "thorough": "All tries: for extreme changes of view; up to a minute or more.",
}
QUALITIES: dict[Quality, str] = {
    "fast": "Few points, in the shortest time: to see whether the photographs connect.",
    "balanced": "As many points as other tools find, placed to a fraction of a pixel.",
    "dense": "Three times as many, for splats and meshes; takes twice as long.",
}
GEOMETRIES = {
    "fundamental": "Tells right from wrong matches for any scene.",
    "homography": "For a flat scene, or a camera that only turned.",
    "essential": "As fundamental, with an assumed focal length; gives the relative pose.",
    "none": "Do not tell right from wrong.",
}
LEARNED = ("cairn", "aliked-n16", "disk", "xfeat")  # of these; offered where the weights are on this machine


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    features: str = Field("auto", description=f"One of {', '.join(extractors.names())}, or auto.")
    matcher: str = Field("auto", description=f"One of {', '.join(matchers.names())}, or auto.")

    @field_validator("features", "matcher")
    @classmethod
    def _is_known(cls, value: str, field: ValidationInfo) -> str:
        # Names of files (cairn@FILE) are refused with all else: a client does not choose files of the server.
        names = extractors.names() if field.field_name == "features" else matchers.names()
        if value not in ("auto", *names):
            raise ValueError(f"no {field.field_name} of that name; there are: auto, {', '.join(names)}")
        return value


class MatchOptions(_Options):
    """Options of a match."""

    effort: Effort = Field("auto", description="How hard to try.")
    geometry: Literal["fundamental", "homography", "essential", "none"] = Field(
        "fundamental", description="The model that tells inliers from outliers."
    )


class MapOptions(_Options):
    """Options of a map."""

    quality: Quality = Field("balanced", description="How many points, and how precise.")


def choices(limits: Limits) -> dict[str, object]:
    """Return what the page offers: names and lines, suffixes of files, and limits in bytes."""
    usable = {
        name: line
        for name, line in FEATURES.items()
        if name == "auto" or (name in extractors.names() and (name not in LEARNED or weights.available(name)))
    }
    return {
        "features": usable,
        "matcher": MATCHERS,
        "effort": EFFORTS,
        "quality": QUALITIES,
        "geometry": GEOMETRIES,
        "photographs": SUFFIXES,
        "videos": VIDEO_SUFFIXES,
        "limits": {"photograph": limits.photograph, "video": limits.video, "files": limits.files},
    }
