"""Photometric augmentation: the same view under another light, through another lens, by another camera.

Changes come in the order in which they happen to a photograph: seasons pass (plants, sky, snow), light falls (colour,
shadows, night), passes air and lens (fog, rain, glow, vignette, blur), meets the sensor (spectrum, exposure, noise),
and is developed and stored (tone curves, contrast, film, JPEG).
Every image of a batch gets its own. Nothing moves: a keypoint stays where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...errors import ArgumentError
from ._random import Draw

# Quantisation tables of ITU-T T.81, annex K.
_LUMA = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""
_CHROMA = """
17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
"""


@dataclass(frozen=True)
class PhotometricConfig:
    """How often, and how strongly.

    Attributes
    ----------
    strength : float in [0, 1]
        Scales every range. At 0 nothing changes.
    colour, shadow, fog, glow, vignette, blur, motion_blur, exposure, noise, tone, jpeg : float in [0, 1]
        Probability that an image gets this change.
    season, night, weather, spectrum, curve, film : float in [0, 1]
        The same of changes after which a place is still recognised, but hardly by its gradients.
    """

    strength: float = 1.0
    colour: float = 0.7
    shadow: float = 0.35
    fog: float = 0.12
    glow: float = 0.15
    vignette: float = 0.25
    blur: float = 0.3
    motion_blur: float = 0.15
    exposure: float = 0.5
    noise: float = 0.6
    tone: float = 0.8
    jpeg: float = 0.4
    season: float = 0.0
    night: float = 0.0
    weather: float = 0.0
    spectrum: float = 0.0
    curve: float = 0.0
    film: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ArgumentError(f"{name} is {value}; it must lie between 0 and 1")

    @staticmethod
    def preset(name: str) -> PhotometricConfig:
        """Return a preset by its name.

        ``"none"``; ``"mild"``: a few minutes later; ``"strong"``: another day, another camera; ``"extreme"``: another
        season, night, another part of the spectrum, another century.
        """
        presets = {
            "none": PhotometricConfig(strength=0.0),
            "mild": PhotometricConfig(strength=0.35, shadow=0.1, fog=0.05, glow=0.05, blur=0.15, motion_blur=0.05),
            "strong": PhotometricConfig(),
            "extreme": PhotometricConfig(season=0.2, night=0.1, weather=0.08, spectrum=0.12, curve=0.2, film=0.08),
        }
        if name not in presets:
            raise ArgumentError(f"there is no photometric preset {name!r}; choose one of {', '.join(presets)}")
        return presets[name]


@torch.no_grad()
def augment(images: torch.Tensor, config: PhotometricConfig, generator: torch.Generator) -> torch.Tensor:
    """Change light, lens and camera of every image at random.

    Parameters
    ----------
    images : float32 tensor (B, 3, H, W) in [0, 1]
        On any device. Not modified.
    config : PhotometricConfig
        Probabilities and strength.
    generator : torch.Generator
        On the CPU. Chooses the same changes on every device; sensor noise alone is drawn on the device.

    Returns
    -------
    float32 tensor (B, 3, H, W) in [0, 1]

    Examples
    --------
    >>> images = torch.rand(4, 3, 40, 56)
    >>> changed = augment(images, PhotometricConfig.preset("strong"), torch.Generator().manual_seed(0))
    >>> changed.shape, bool(changed.min() >= 0), bool(changed.max() <= 1)
    (torch.Size([4, 3, 40, 56]), True, True)
    """
    if config.strength == 0:
        return images
    draw = Draw(generator)
    images = images.clone()
    changes: tuple[tuple[float, Callable[[torch.Tensor, float, Draw], torch.Tensor]], ...] = (
        (config.season, _season),
        (config.colour, _colour),
        (config.shadow, _shadow),
        (config.night, _night),
        (config.fog, _fog),
        (config.weather, _weather),
        (config.glow, _glow),
        (config.vignette, _vignette),
        (config.blur, _blur),
        (config.motion_blur, _motion_blur),
        (config.spectrum, _spectrum),
        (config.exposure, _exposure),
        (config.noise, _noise),
        (config.curve, _curve),
        (config.tone, _tone),
        (config.film, _film),
        (config.jpeg, _jpeg),
    )
    for probability, change in changes:
        if probability == 0:
            continue
        chosen = draw.chance(probability, len(images)).nonzero()[:, 0]
        if len(chosen):
            rows = chosen.to(images.device)
            images[rows] = change(images[rows], config.strength, draw).clamp(0, 1)
    return images


def jpeg(images: torch.Tensor, quality: torch.Tensor, subsample: bool = True) -> torch.Tensor:
    """Put images through JPEG's losses: colour transform, 8 x 8 cosine transform, quantisation, and back.

    Parameters
    ----------
    images : float32 tensor (B, 3, H, W) in [0, 1]
        RGB.
    quality : float tensor (B,)
        1 to 100, with the meaning of libjpeg and Pillow.
    subsample : bool
        Keep colour at half the resolution ("4:2:0"), as most cameras do.

    Returns
    -------
    float32 tensor (B, 3, H, W) in [0, 1]

    References
    ----------
    ITU-T T.81 (1992); JFIF 1.02 for the colour transform.

    Examples
    --------
    >>> flat = torch.full((1, 3, 16, 16), 0.5)
    >>> bool((jpeg(flat, torch.tensor([10.0])) - flat).abs().max() < 0.01)
    True
    """
    height, width = images.shape[2:]
    device = images.device
    padded = F.pad(images * 255, (0, -width % 16, 0, -height % 16), mode="replicate")
    red, green, blue = padded.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)
    if subsample:
        chroma = F.avg_pool2d(chroma, 2)
    quality = quality.to(device).clamp(1, 100)
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None, None, None, None]
    tables = [
        (torch.tensor([float(n) for n in text.split()], device=device).view(8, 1, 8) * factor + 0.5)
        .floor()
        .clamp(1, 255)
        for text in (_LUMA, _CHROMA)
    ]
    luma = _quantise(luma[:, None] - 128, tables[0])[:, 0] + 128
    chroma = _quantise(chroma, tables[1])
    if subsample:
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    cb, cr = chroma.unbind(1)
    result = torch.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], 1)
    return (result[:, :, :height, :width] / 255).clamp(0, 1)


def _quantise(channels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Round the cosine coefficients of 8 x 8 blocks of (B, C, H, W) to multiples of ``table`` (B, 1, 1, 8, 1, 8)."""
    n = torch.arange(8, device=channels.device)
    cosine = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) / 2
    cosine[0] /= math.sqrt(2)
    blocks = channels.unflatten(2, (-1, 8)).unflatten(4, (-1, 8))  # (B, C, rows, 8, columns, 8)
    coefficients = torch.einsum("ui,bcrisj,vj->bcrusv", cosine, blocks, cosine)
    coefficients = (coefficients / table).round() * table
    blocks = torch.einsum("ui,bcrusv,vj->bcrisj", cosine, coefficients, cosine)
    return blocks.flatten(4, 5).flatten(2, 3)


def _colour(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """White balance: a warm or cold light, and a cast of green or magenta. Brightness stays."""
    warmth = draw.uniform(-0.35, 0.35, len(images)) * strength
    cast = draw.uniform(-0.1, 0.1, len(images)) * strength
    gains = torch.stack([warmth, cast, -warmth], 1).exp()
    return images * _column(gains / gains.mean(1, keepdim=True), images)


def _shadow(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Soft-edged convex shadow with bluish shade; one time in three everything but the polygon is in shadow."""
    count = len(images)
    x, y = _unit_grid(images)
    inside: torch.Tensor | float = 1.0
    centre = _column(draw.uniform(-0.9, 0.9, count, 2), images)
    softness = _column(draw.log_uniform(0.01, 0.25, count, 1), images)
    turn = draw.uniform(0, 2 * math.pi, count)
    for side in range(4):
        angle = turn + math.pi / 2 * (side + draw.uniform(-0.3, 0.3, count))
        normal = _column(torch.stack([angle.cos(), angle.sin()], 1), images)
        # Some sides lie beyond the picture, so the shadow is a polygon, a band, a corner or a half.
        distance = _column(draw.uniform(0.15, 1.8, count, 1), images)
        along = (x - centre[:, :1]) * normal[:, :1] + (y - centre[:, 1:]) * normal[:, 1:]
        inside = inside * torch.sigmoid((distance - along) / softness)
    lit = _column(draw.chance(0.33, count).float()[:, None], images)
    shaded = (inside - lit).abs()
    depth = 1 - draw.uniform(0.25, 0.75, count, 1) * strength
    shade = _column(depth * torch.tensor([0.97, 1.0, 1.06]), images)
    return images * torch.lerp(torch.ones_like(shade), shade, shaded)


def _fog(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Grey veil, thicker towards one side and in patches."""
    count = len(images)
    x, y = _unit_grid(images)
    angle = draw.uniform(0, 2 * math.pi, count, 1)
    slope = (x * _column(angle.cos(), images) + y * _column(angle.sin(), images)) / 2
    patches = _smooth_field(images, draw, 4)
    amount = _column(draw.uniform(0.15, 0.6, count, 1) * strength, images)
    veil = _column((draw.uniform(0.55, 0.95, count, 1) + draw.uniform(-0.04, 0.04, count, 3)).clamp(0, 1), images)
    return torch.lerp(images, veil.expand_as(images), (amount * (1 + 0.6 * slope + 0.5 * patches)).clamp(0, 0.85))


def _glow(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Flare of a lamp or the sun in or beside the picture: a halo, a wide veil, and its ghost across the centre."""
    count = len(images)
    centre = draw.uniform(-1.2, 1.2, count, 2)
    light = torch.zeros_like(images[:, :1])
    for place, low, high, share in ((1.0, 0.06, 0.3, 1.0), (1.0, 0.5, 1.2, 0.35), (-0.6, 0.03, 0.12, 0.25)):
        light = light + share * _spot(images, place * centre, draw.log_uniform(low, high, count, 1))
    colour = _column(draw.uniform(0.75, 1, count, 3) * draw.uniform(0.3, 1.0, count, 1) * strength, images)
    return 1 - (1 - images) * (1 - (colour * light).clamp(0, 1))  # "screen": light adds up but never beyond white


def _vignette(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Lens that darkens towards the corners."""
    x, y = _unit_grid(images)
    amount = _column(draw.uniform(0.1, 0.6, len(images), 1) * strength, images)
    return images * (1 - amount * ((x * x + y * y) / 2).clamp(max=1) ** 1.5)


def _blur(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Defocus: a Gaussian with sigma between 0.4 and 2.4 pixels at full strength (for a 640 pixel long side)."""
    scale = max(images.shape[2:]) / 640
    sigma = (0.4 + draw.uniform(0, 2.0, len(images)) * strength) * scale
    radius = max(1, math.ceil(3 * float(sigma.max())))
    offset = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-(offset**2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    return _filter(_filter(images, kernel[:, None, :]), kernel[:, :, None])


def _motion_blur(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Straight camera shake of up to 15 pixels at full strength (for a 640 pixel long side), about the same centre."""
    scale = max(images.shape[2:]) / 640
    length = (2 + draw.uniform(0, 13, len(images)) * strength) * scale
    angle = draw.uniform(0, math.pi, len(images))
    radius = max(1, math.ceil(float(length.max()) / 2))
    kernel = _line(length, angle, radius, 1.0)
    return _filter(images, kernel / kernel.sum((1, 2), keepdim=True))


def _exposure(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Too little light (down to a sixth) or too much (up to 1.6 times, clipping); darkness is the commoner."""
    stops = draw.uniform(-2.5, 0.7, len(images), 1) * strength
    return _not_black(images * _column(torch.exp2(stops), images))


def _noise(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Sensor noise: shot noise, whose variance grows with the light, and read noise, which is there in the dark too.

    A gain after it (half of the time) brings a dark picture back to normal brightness, and its noise with it.
    """
    count = len(images)
    shot = _column((draw.log_uniform(0.003, 0.05, count, 1) * strength), images)
    read = _column((draw.log_uniform(0.002, 0.025, count, 1) * strength), images)
    gain = draw.chance(0.5, count)[:, None]
    noise = torch.randn(images.shape, generator=draw.device_generator(images.device), device=images.device)
    noisy = images + noise * (shot * shot * images + read * read).sqrt()
    bright = noisy.mean((1, 2, 3), keepdim=True).clamp(min=0.02)
    lifted = noisy * (0.35 / bright).clamp(1, 6)
    return torch.where(_column(gain.float(), images) > 0, lifted, noisy)


def _tone(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Develop: gamma, contrast, brightness, saturation (one in ten is black and white)."""
    count = len(images)
    gamma = draw.log_uniform(0.5, 2.0, count, 1) ** strength
    contrast = draw.log_uniform(0.5, 1.7, count, 1) ** strength
    brightness = 1 + draw.uniform(-0.4, 0.5, count, 1) * strength
    saturation = draw.log_uniform(0.3, 1.8, count, 1) ** strength
    saturation = torch.where(draw.chance(0.1 * strength, count)[:, None], torch.zeros(1), saturation)
    images = torch.exp(images.clamp(min=1e-4).log() * _column(gamma, images))  # faster than a power
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle * _column(brightness, images) + (images - middle) * _column(contrast, images)
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)[:, None, None]
    grey = (images * weights).sum(1, keepdim=True)
    return _not_black(grey + (images - grey) * _column(saturation, images))


def _jpeg(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Store as JPEG of quality 15 and up."""
    return jpeg(images, 95 - draw.uniform(0, 80, len(images)) * strength)


def _season(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Plants turn yellow, brown or white, the sky grey, orange or dark, and snow lies on what is bright and flat."""
    count = len(images)
    red, green, blue = images.split(1, 1)
    # The sky is bright, bluish or colourless, and above.
    height = _unit_grid(images)[1]
    plants = torch.sigmoid(40 * (green - torch.maximum(red, blue) - 0.01))
    bright = torch.sigmoid(15 * (images.mean(1, keepdim=True) - 0.55)) * torch.sigmoid(25 * (blue - red + 0.02))
    sky = bright * torch.sigmoid(-6 * (height + 0.1))
    grey = images.mean(1, keepdim=True)
    for mask, low, high in ((plants, 0.25, 1.3), (sky, 0.15, 1.2)):
        hue = _column(draw.uniform(0.4, 1.2, count, 3) * draw.uniform(low, high, count, 1), images)
        amount = _column(draw.uniform(0.2, 1, count, 1) * strength, images)
        images = torch.lerp(images, (grey * hue).clamp(0, 1), mask * amount)
    ground = torch.sigmoid(8 * (height + _smooth_field(images, draw, 5) * 0.4)) * (1 - sky)
    snow = _column(draw.uniform(0, 0.9, count, 1) * draw.chance(0.35, count)[:, None] * strength, images)
    return torch.lerp(images, 0.85 + 0.15 * grey, snow * ground * torch.sigmoid(12 * (grey - 0.35)))


def _night(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Night: dark, with the cast of the moon or of sodium light, lit by a few lamps, with noise."""
    count = len(images)
    light = torch.zeros_like(images[:, :1])
    for _ in range(4):
        spot = _spot(images, draw.uniform(-1, 1, count, 2), draw.log_uniform(0.1, 0.7, count, 1))
        light = light + _column(draw.uniform(0, 1.2, count, 1), images) * spot
    sodium = torch.stack([torch.ones(count), draw.uniform(0.6, 0.9, count), draw.uniform(0.2, 0.6, count)], 1)
    warm = _column(sodium, images)
    cold = _column(torch.tensor([[0.7, 0.85, 1.1]]).expand(count, 3), images)
    ambient = _column(draw.uniform(0.05, 0.25, count, 1), images)
    dark = images.clamp(min=1e-4) ** 1.4 * (ambient * cold + light * warm)
    noise = torch.randn(images.shape, generator=draw.device_generator(images.device), device=images.device)
    dark = dark + 0.02 * noise * dark.clamp(0, 1).sqrt() + 0.008 * noise
    dark = dark * (0.22 / dark.mean((1, 2, 3), keepdim=True).clamp(min=0.02)).clamp(1, 4)  # the camera exposes longer
    return torch.lerp(images, dark, min(1.0, 0.3 + 0.7 * strength))


def _weather(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Snowflakes or streaks of rain between camera and scene."""
    count = len(images)
    generator = draw.device_generator(images.device)
    drops = torch.rand(images[:, :1].shape, generator=generator, device=images.device)
    density = _column(draw.uniform(0.002, 0.012, count, 1) * strength, images)
    drops = (drops < density).to(images)
    length = torch.where(draw.chance(0.5, count), draw.uniform(1.5, 3, count), draw.uniform(6, 14, count))
    angle = draw.uniform(0.35, 0.65, count) * math.pi
    streaks = _filter(drops, _line(length, angle, 7, 1.3))
    return torch.lerp(images, torch.full_like(images, 0.9), (0.7 * streaks).clamp(0, 0.8))


def _spectrum(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Another part of the spectrum, in grey: near infrared, where plants are bright, or a thermal camera's blur."""
    count = len(images)
    mix = draw.uniform(-0.8, 1.4, count, 3)
    mix = mix / mix.sum(1, keepdim=True).abs().clamp(min=0.4)
    other = (images * _column(mix, images)).sum(1, keepdim=True)
    # Of a thermal picture it depends on what things are made of whether they are brighter or darker than around.
    side = torch.tanh(2 * _smooth_field(images, draw, 3))
    mean = other.mean((1, 2, 3), keepdim=True)
    thermal = _column(draw.chance(0.3, count).float()[:, None], images)
    other = mean + (other - mean) * torch.lerp(torch.ones_like(side), side, thermal)
    low = other.amin((2, 3), keepdim=True)
    other = (other - low) / (other.amax((2, 3), keepdim=True) - low).clamp(min=0.1)
    return torch.lerp(images, other.expand_as(images), strength)


def _curve(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Tone curves that need not rise, two of them in different parts of the picture: some gradients are reversed."""
    count, knots = len(images), 6
    straight = torch.linspace(0, 1, knots)
    where = torch.sigmoid(4 * _smooth_field(images, draw, 3))
    curved = []
    for _ in range(2):
        bent = draw.uniform(0, 1, count, knots)
        amount = draw.uniform(0.1, 0.75, count, 1) * strength
        table = torch.lerp(straight.expand(count, knots), bent, amount).to(images)
        position = images.clamp(0, 1) * (knots - 1)
        index = position.floor().long().clamp(max=knots - 2)
        low, high = (table.gather(1, (index + step).flatten(1)).view_as(images) for step in (0, 1))
        curved.append(torch.lerp(low, high, position - index))
    return torch.lerp(curved[0], curved[1], where)


def _film(images: torch.Tensor, strength: float, draw: Draw) -> torch.Tensor:
    """Film of another century: grey or sepia, grain, flat contrast, uneven fading, scratches."""
    count = len(images)
    weights = draw.uniform(0, 1, count, 3)  # early emulsions saw no red
    grey = (images * _column(weights / weights.sum(1, keepdim=True), images)).sum(1, keepdim=True)
    paper = _column(torch.tensor([1.0, 0.93, 0.8]).lerp(torch.ones(3), draw.uniform(0, 1, count, 1)), images)
    flat = _column(draw.uniform(0.45, 1, count, 1), images)
    grain = torch.randn(grey.shape, generator=draw.device_generator(images.device), device=images.device)
    coarse = _column(draw.uniform(0.01, 0.05, count, 1), images) * F.avg_pool2d(grain, 3, 1, 1) * 2
    old = (0.5 + flat * (grey - 0.5) + coarse) * paper + 0.12 * _smooth_field(images, draw, 3)
    x = _unit_grid(images)[0]
    for _ in range(2):
        at = _column(draw.uniform(-1, 1, count, 1), images)
        there = _column(draw.chance(0.3, count).float()[:, None], images)
        scratch = ((x - at).abs() < 1.5 / images.shape[3]).to(images) * there
        old = torch.lerp(old, torch.ones_like(old), 0.6 * scratch)
    return torch.lerp(images, old, min(1.0, 0.3 + 0.7 * strength))


def _not_black(images: torch.Tensor) -> torch.Tensor:
    """Brighten pictures too dark to hold anything in 8 bits, as a camera's automatic exposure would."""
    mean = images.clamp(min=0).mean((1, 2, 3), keepdim=True)
    return images * (0.09 / mean.clamp(min=1e-3)).clamp(min=1)


def _filter(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Correlate image b of (B, 3, H, W) with kernel b of (B, rows, columns), odd sizes, border repeated."""
    count, channels, height, width = images.shape
    rows, columns = kernels.shape[1:]
    padded = F.pad(images, (columns // 2, columns // 2, rows // 2, rows // 2), mode="replicate")
    weight = kernels.to(images).repeat_interleave(channels, 0)[:, None]
    filtered = F.conv2d(padded.flatten(0, 1)[None], weight, groups=count * channels)
    return filtered.view(count, channels, height, width)


def _line(length: torch.Tensor, angle: torch.Tensor, reach: int, width: float) -> torch.Tensor:
    """Return kernels (B, 2 reach + 1, 2 reach + 1) that draw a line of ``length`` (B,) with linear fall-off."""
    offset = torch.arange(-reach, reach + 1)
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = x * cosine + y * sine, y * cosine - x * sine
    return (length[:, None, None] / 2 + 0.5 - along.abs()).clamp(0, 1) * (width - across.abs()).clamp(0, 1)


def _spot(images: torch.Tensor, centre: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Return a round light (B, 1, H, W) that is 1 at ``centre`` (B, 2) and fades over ``radius`` (B, 1)."""
    (x, y), at, radius = _unit_grid(images), _column(centre, images), _column(radius, images)
    return torch.exp(-((x - at[:, :1]) ** 2 + (y - at[:, 1:]) ** 2) / (2 * radius**2))


def _smooth_field(images: torch.Tensor, draw: Draw, cells: int) -> torch.Tensor:
    """Smooth random numbers (B, 1, H, W) of about unit variance, ``cells`` hills across."""
    coarse = draw.uniform(-1.7, 1.7, len(images), 1, cells, cells).to(images.device)
    return F.interpolate(coarse, size=images.shape[2:], mode="bicubic", align_corners=True)


def _unit_grid(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x (1, 1, 1, W) and y (1, 1, H, 1), from -1 to 1."""
    height, width = images.shape[2:]
    x = torch.linspace(-1, 1, width, device=images.device)
    y = torch.linspace(-1, 1, height, device=images.device)
    return x[None, None, None], y[None, None, :, None]


def _column(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Parameters (B, C) as (B, C, 1, 1) on the images' device."""
    return values.to(images)[..., None, None]
