"""One optical section through random cortex: everything of `lab.tissue`, neuropil and vessels.

Lengths are micrometres, brightness is relative to the resting neuropil.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.ndimage import distance_transform_edt
from scipy.special import expit

from lab.tissue import (
    DENDRITE_UM,
    Canvas,
    TissueConfig,
    draw_axons,
    draw_cells,
    draw_dendrites,
    grow,
    place_cells,
)


@dataclass
class Section:
    """What a section shows at rest, and the footprints of what is active in it."""

    neuropil: np.ndarray  # [H,W] float32, resting brightness
    modes: np.ndarray  # [M,H,W] float32, of mean 1: regions of neuropil active together
    haze: np.ndarray  # [H,W] float32, brightness without structure
    pixel: np.ndarray  # [N] flat index of a pixel that a source covers
    source: np.ndarray  # [N] which source
    weight: np.ndarray  # [N] float32, its resting brightness there
    num_sources: int


def smooth_field(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise [...,H,W] float32 of unit variance, smoothed by a Gaussian [pixels]."""
    white = rng.standard_normal(shape, dtype=np.float32)
    rows = np.fft.fftfreq(shape[-2])[:, None]
    columns = np.fft.rfftfreq(shape[-1])[None]
    keep = np.exp(-2 * (np.pi * scale) ** 2 * (rows**2 + columns**2)).astype(np.float32)
    keep[0, 0] = 0  # mean 0, also where the field holds few regions
    field = scipy.fft.irfft2(scipy.fft.rfft2(white) * keep, shape[-2:])
    return field / (field.std((-2, -1), keepdims=True) + 1e-12)


def _tube_cover(
    config: TissueConfig,
    shape: tuple[int, int],
    per_mm2: float,
    radius_um: float,
    softness: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Cover [H,W] between 0 and 1 by curved vessels, their rims soft over a share of the radius."""
    pixel = config.pixel_um
    pad = math.ceil(1.5 * radius_um / pixel)
    size = (np.array(shape) + 2 * pad) * pixel
    count = rng.poisson(per_mm2 * float(np.prod(size)) * 1e-6)
    radius_at = np.zeros(np.array(shape) + 2 * pad)
    if count == 0:
        return radius_at[pad:-pad, pad:-pad]
    start = np.column_stack([rng.uniform(size=(count, 2)) * size, np.zeros(count)])
    slope = rng.uniform(-np.pi / 2, np.pi / 2, count)  # some run along the section, some across
    heading = rng.uniform(0, 2 * np.pi, count)
    length = rng.uniform(10, 40) * radius_um
    points = grow(start, heading, slope, length, 0.5 * pixel, 0.08, rng).points
    radius = radius_um * np.exp(0.25 * rng.standard_normal((count, 1)))
    # Where the vessel has left the section, the section cuts it in a narrower band, then not.
    half_width = np.sqrt(np.maximum(radius**2 - points[..., 2] ** 2, 0))
    at = (points[..., :2] / pixel).astype(np.int64)  # [V,S,2]
    inside = ((at >= 0) & (at < radius_at.shape)).all(-1) & (half_width > 0)
    np.maximum.at(radius_at, tuple(at[inside].T), half_width[inside])
    if not radius_at.any():
        return radius_at[pad:-pad, pad:-pad]
    distance, nearest = distance_transform_edt(radius_at == 0, return_indices=True)
    around = radius_at[tuple(nearest)]
    rim = softness * radius_um + 0.3 * max(config.psf_um, pixel)
    return expit((around - distance * pixel) / rim)[pad:-pad, pad:-pad]


def draw_section(
    config: TissueConfig, height: int, width: int, rng: np.random.Generator
) -> Section:
    """A random optical section of the given anatomy; brightness 1 is the neuropil's."""
    pixel = config.pixel_um
    shape = (height, width)
    canvas = Canvas(config, height, width)
    centres = place_cells(config, height * pixel, width * pixel, rng)
    labelled, brightness = draw_cells(centres, config, canvas, rng)
    num_sources = len(labelled)

    # Dendrites share the trace of their cell; those of cells out of sight have their own.
    per_cell = rng.poisson(config.dendrites_per_cell, num_sources)
    owner = np.repeat(np.arange(num_sources), per_cell)
    margin = DENDRITE_UM / 2
    size = np.array([height * pixel + 2 * margin, width * pixel + 2 * margin, -margin])
    strangers = rng.poisson(config.dendrites_per_mm2 * size[0] * size[1] * 1e-6)
    place = rng.uniform(size=(strangers, 3)) * size - [margin, margin, 2 * config.section_um]
    draw_dendrites(
        np.concatenate([labelled[owner], place]),
        # The strangers rise from below the section, flat or straight up.
        np.concatenate([rng.normal(0, 0.4, len(owner)), rng.uniform(0.1, np.pi / 2, strangers)]),
        np.concatenate([owner, num_sources + np.arange(strangers)]),
        config.dendrite_brightness
        * np.concatenate([brightness[owner], np.exp(0.7 * rng.standard_normal(strangers))]),
        canvas,
        rng,
    )
    num_sources += strangers
    num_sources += draw_axons(canvas, num_sources, rng)

    patches = config.patch_contrast * smooth_field(shape, config.patch_um / pixel / 2, rng)
    # Nothing is finer than the light spot, blurred by the area that a pixel gathers from.
    spot = math.hypot(config.psf_um / pixel, 0.5)
    grain = math.hypot(config.texture_um / pixel / 2, spot)
    texture = np.exp(config.texture_contrast * smooth_field(shape, grain, rng))
    capillaries = 1 - 0.95 * _tube_cover(
        config, shape, config.capillaries_per_mm2, config.capillary_um, 0.1, rng
    )
    shadow = 1 - config.shadow_depth * _tube_cover(
        config, shape, config.shadows_per_mm2, config.shadow_um, 0.3, rng
    )
    shading = np.exp(config.shading * smooth_field(shape, 0.4 * min(shape), rng))
    lit = (shadow * shading * capillaries).astype(np.float32)
    modes = smooth_field((config.num_modes, *shape), config.mode_um / pixel / 2, rng)
    # Activity is as grainy as the processes that make up the neuropil.
    modes = np.exp(
        config.mode_contrast * modes + config.mode_grain * smooth_field(modes.shape, spot, rng)
    )

    pixel_of, source, weight = (np.concatenate(part) for part in zip(*canvas.parts, strict=True))
    return Section(
        neuropil=(np.exp(patches) * texture * canvas.room * lit).astype(np.float32),
        modes=modes / modes.mean((1, 2), keepdims=True),
        haze=(config.haze * shadow * shading).astype(np.float32),
        pixel=pixel_of,
        source=source,
        # The same grain in all that is stained, as stain and tissue are uneven alike.
        weight=weight * (texture * lit).ravel()[pixel_of].astype(np.float32),
        num_sources=num_sources,
    )
