"""What a simulated section holds: cell bodies, dendrites and axons, and what they put on pixels.

Lengths are micrometres, brightness is relative to the neuropil. Knows nothing of time;
`lab.activity` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import erf

from lab.activity import Range

STEP = 0.8  # pixels between the points of a process
DENDRITE_UM = 80.0  # length of the first generation
AXONS_PER_NEURON = 4  # branches of one axon that cross a field


@dataclass(frozen=True, kw_only=True)
class TissueConfig:
    """Anatomy, labelling and optics. A density of 0 leaves the content out."""

    # optics: standard deviations of the light spot
    pixel_um: float
    psf_um: float
    section_um: float  # along the beam
    haze: float  # light from everywhere that no structure blocks
    shading: float  # standard deviation of the brightness over the field, from the optics
    # cell bodies
    cells_per_mm3: float
    labelled_fraction: float  # the others are dark bodies
    soma_um: float  # mean radius
    soma_brightness: float
    brightness_spread: float  # standard deviation of its logarithm over cells
    nucleus_leak: float  # brightness of a nucleus over that of its cell
    filled_fraction: float  # of the labelled cells, with a nucleus as bright as the rest
    # processes
    dendrites_per_cell: float
    dendrites_per_mm2: float  # of cells out of sight
    dendrite_brightness: float
    axons_per_mm2: float
    axon_um: float  # mean length
    axon_brightness: float
    axon_wander: float  # turn over one micrometre, radians
    bouton_um: float  # mean distance between boutons
    bouton_brightness: float  # over that of the axon
    # neuropil
    patch_um: float  # size of bright and dim regions
    patch_contrast: float  # standard deviation of the logarithm
    texture_um: float
    texture_contrast: float
    mode_um: float  # size of the regions that are active together
    mode_contrast: float  # standard deviation of the logarithm of their activity over the field
    mode_grain: float  # the same from point to point
    num_modes: int
    # vessels
    capillaries_per_mm2: float
    capillary_um: float  # radius
    shadows_per_mm2: float  # of vessels above the section
    shadow_um: float  # radius
    shadow_depth: float  # share of the light that is lost


RANGES = {
    "pixel_um": Range(0.5, 2.5, log=True),
    "psf_um": Range(0.35, 0.9),
    "section_um": Range(1.0, 5.0, log=True),
    "haze": Range(0.05, 0.6, log=True),
    "shading": Range(0.0, 0.15),
    "cells_per_mm3": Range(4e4, 2.5e5, log=True, absent=0.05),
    "labelled_fraction": Range(0.15, 1.0),
    "soma_um": Range(4.5, 8.0),
    "soma_brightness": Range(1.0, 5.0, log=True),
    "brightness_spread": Range(0.2, 0.9),
    "nucleus_leak": Range(0.0, 0.3),
    "filled_fraction": Range(0.0, 0.3),
    "dendrites_per_cell": Range(2.0, 6.0, absent=0.2),
    "dendrites_per_mm2": Range(100.0, 2000.0, log=True, absent=0.2),
    "dendrite_brightness": Range(0.1, 1.2, log=True),
    "axons_per_mm2": Range(3e3, 1e5, log=True, absent=0.1),
    "axon_um": Range(30.0, 150.0, log=True),
    "axon_brightness": Range(0.02, 0.5, log=True),
    "axon_wander": Range(0.05, 0.6, log=True),
    "bouton_um": Range(3.0, 15.0),
    "bouton_brightness": Range(0.5, 4.0),
    "patch_um": Range(10.0, 60.0, log=True),
    "patch_contrast": Range(0.02, 0.3, log=True),
    "texture_um": Range(0.5, 2.0, log=True),
    "texture_contrast": Range(0.02, 0.2, log=True),
    "mode_um": Range(8.0, 60.0, log=True),
    "mode_contrast": Range(0.2, 0.9),
    "mode_grain": Range(0.03, 0.6, log=True),
    "capillaries_per_mm2": Range(50.0, 600.0, log=True, absent=0.2),
    "capillary_um": Range(2.0, 4.0),
    "shadows_per_mm2": Range(5.0, 60.0, log=True, absent=0.5),
    "shadow_um": Range(6.0, 40.0, log=True),
    "shadow_depth": Range(0.1, 0.7),
}


def draw_tissue(rng: np.random.Generator) -> TissueConfig:
    """Random anatomy, labelling and optics."""
    numbers = {name: span.draw(rng) for name, span in RANGES.items()}
    return TissueConfig(num_modes=int(rng.integers(4, 17)), **numbers)


@dataclass
class _Paths:
    """Points along curved processes."""

    points: np.ndarray  # [P,S,3]: y, x and depth from the section
    heading: np.ndarray  # [P,S], radians in the plane
    length: np.ndarray  # [S], from the start


def grow(
    start: np.ndarray,
    heading: np.ndarray,
    slope: np.ndarray,
    length_um: float,
    step_um: float,
    wander: float,
    rng: np.random.Generator,
) -> _Paths:
    """Paths from [P,3], first heading [P] in the plane and rising by slope [P], both wandering."""
    steps = max(2, round(length_um / step_um))
    turn = wander * math.sqrt(step_um) * rng.standard_normal((2, len(start), steps))
    around = heading[:, None] + np.cumsum(turn[0], 1)
    # Cortex is wider than a section is thick: slopes wander less, or nothing would stay in focus.
    up = slope[:, None] + 0.3 * np.cumsum(turn[1], 1)
    direction = np.stack([np.cos(up) * np.sin(around), np.cos(up) * np.cos(around), np.sin(up)], -1)
    points = start[:, None] + step_um * np.cumsum(direction, 1)
    return _Paths(points, around, step_um * np.arange(1, steps + 1))


class Canvas:
    """Collects what sources put on pixels."""

    def __init__(self, config: TissueConfig, height: int, width: int) -> None:
        self.config = config
        self.shape = (height, width)
        self.room = np.ones((height, width))  # share of the light spot outside all cell bodies
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def stamp(
        self, row: np.ndarray, column: np.ndarray, source: np.ndarray, weight: np.ndarray
    ) -> None:
        """Add weights [N] to pixels, some of which may lie outside."""
        height, width = self.shape
        seen = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (weight > 1e-4)
        flat = row[seen] * width + column[seen]
        self.parts.append((flat, source[seen], weight[seen].astype(np.float32)))

    def trace(
        self, points: np.ndarray, radius: np.ndarray, source: np.ndarray, weight: np.ndarray
    ) -> None:
        """Add points [N,3] along thin processes of radius [N] as Gaussian spots.

        The points of a process are STEP pixels apart, so that they add up to its weight.
        """
        pixel = self.config.pixel_um
        depth = points[:, 2] / np.hypot(self.config.section_um, radius)
        row, column = points[:, 0] / pixel, points[:, 1] / pixel
        margin = 3
        seen = (
            (np.abs(depth) < 2.5)
            & (row > -margin)
            & (row < self.shape[0] + margin)
            & (column > -margin)
            & (column < self.shape[1] + margin)
        )
        row, column, depth = row[seen], column[seen], depth[seen]
        # Half a pixel at least, as the pixel itself gathers over its area.
        sigma = np.maximum(np.hypot(self.config.psf_um, 0.5 * radius[seen]) / pixel, 0.5)
        peak = weight[seen] * np.exp(-(depth**2) / 2) * STEP / (math.sqrt(2 * math.pi) * sigma)
        if not len(row):
            return
        reach = math.ceil(2 * sigma.max())
        offsets = np.arange(-reach, reach + 1)
        centre_row, centre_column = np.rint(row).astype(np.int64), np.rint(column).astype(np.int64)

        def profile(centre: np.ndarray, exact: np.ndarray) -> np.ndarray:
            apart = (centre - exact)[:, None] + offsets
            return np.exp(-(apart**2) / (2 * sigma[:, None] ** 2))

        spot = (peak[:, None] * profile(centre_row, row))[:, :, None]
        spot = spot * profile(centre_column, column)[:, None, :]  # [N,R,R]
        rows = np.broadcast_to((centre_row[:, None] + offsets)[:, :, None], spot.shape)
        columns = np.broadcast_to((centre_column[:, None] + offsets)[:, None, :], spot.shape)
        sources = np.broadcast_to(source[seen][:, None, None], spot.shape)
        # Processes pass cell bodies by, they do not pierce them.
        spot = spot * self.room[rows.clip(0, self.shape[0] - 1), columns.clip(0, self.shape[1] - 1)]
        self.stamp(rows.ravel(), columns.ravel(), sources.ravel(), spot.ravel())


def _in_focus(
    distance: np.ndarray, radius: np.ndarray, depth: np.ndarray, config: TissueConfig
) -> np.ndarray:
    """Share of the light spot inside a ball of a radius, at a lateral distance from its centre."""
    # Half the chord along the beam, its rim softened by the width of the spot.
    soft = radius * max(config.psf_um, 0.5 * config.pixel_um)
    chord = np.sqrt(soft * np.logaddexp(0, (radius**2 - distance**2) / soft))
    scale = math.sqrt(2) * config.section_um
    return 0.5 * (erf((chord - depth) / scale) + erf((chord + depth) / scale))


def place_cells(
    config: TissueConfig, height_um: float, width_um: float, rng: np.random.Generator
) -> np.ndarray:
    """Centres [K,3] of bodies that reach into the section and do not overlap."""
    margin = 2 * config.soma_um
    reach = 1.2 * config.soma_um + 2 * config.section_um
    size = np.array([height_um + 2 * margin, width_um + 2 * margin, 2 * reach])
    count = rng.poisson(config.cells_per_mm3 * size.prod() * 1e-9)
    centres = rng.uniform(size=(count, 3)) * size - [margin, margin, reach]
    tree = cKDTree(centres)
    pairs = tree.query_pairs(1.8 * config.soma_um, output_type="ndarray")
    return np.delete(centres, pairs.max(1) if len(pairs) else [], axis=0)


def draw_cells(
    centres: np.ndarray, config: TissueConfig, canvas: Canvas, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Stamp the labelled bodies, the sources from 0 on; their centres [L,3] and brightness [L].

    All bodies, labelled or not, take their room on the canvas.
    """
    height, width = canvas.shape
    count = len(centres)
    labelled = rng.uniform(size=count) < config.labelled_fraction
    radius = config.soma_um * np.exp(0.12 * rng.standard_normal(count))
    brightness = config.soma_brightness * np.exp(
        config.brightness_spread * rng.standard_normal(count)
    )
    half = math.ceil(1.5 * (radius.max(initial=0) + config.psf_um) / config.pixel_um)
    offsets = np.arange(-half, half + 1)
    corner = np.rint(centres[:, :2] / config.pixel_um).astype(np.int64)
    row = corner[:, 0, None, None] + offsets[None, :, None]  # [K,P,1]
    column = corner[:, 1, None, None] + offsets[None, None, :]  # [K,1,P]
    y = row * config.pixel_um - centres[:, 0, None, None]
    x = column * config.pixel_um - centres[:, 1, None, None]

    def each(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1))

    # Bodies are ellipses with corners: the distance is stretched by the angle's 2nd and 3rd order.
    angle = np.arctan2(y, x)
    stretch = 1 + each(0, 0.18) * np.cos(2 * angle - each(0, 2 * np.pi))
    stretch += each(0, 0.10) * np.cos(3 * angle - each(0, 2 * np.pi))
    distance = np.hypot(y, x) * stretch  # [K,P,P]
    outer, depth = radius[:, None, None], centres[:, 2, None, None]
    body = _in_focus(distance, outer, depth, config)

    nucleus = each(0.6, 0.82) * outer
    off = each(0, 0.12) * outer
    toward = each(0, 2 * np.pi)
    to_nucleus = np.hypot(y - off * np.sin(toward), x - off * np.cos(toward)) * stretch
    dark = np.where(each(0, 1) < config.filled_fraction, 0, 1 - config.nucleus_leak)
    shell = body - dark * _in_focus(to_nucleus, nucleus, depth, config)
    shell = np.maximum(shell, 0) * (1 + each(0, 0.4) * np.cos(angle - each(0, 2 * np.pi)))

    rows, columns = np.broadcast_arrays(row, column)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    np.multiply.at(canvas.room, (rows[inside], columns[inside]), 1 - body[inside])

    source = np.broadcast_to((np.cumsum(labelled) - 1)[:, None, None], body.shape)
    weight = brightness[:, None, None] * shell
    canvas.stamp(*(values[labelled].ravel() for values in (rows, columns, source, weight)))
    return centres[labelled], brightness[labelled]


def draw_dendrites(
    start: np.ndarray,
    slope: np.ndarray,
    source: np.ndarray,
    brightness: np.ndarray,
    canvas: Canvas,
    rng: np.random.Generator,
) -> None:
    """Tapering dendrites from points [D,3], each with two branches of half its length."""
    pixel = canvas.config.pixel_um
    step, length_um, width_um = STEP * pixel, DENDRITE_UM, 1.2  # radius at the root
    heading = rng.uniform(0, 2 * np.pi, len(start))
    for generation in range(2):
        paths = grow(start, heading, slope, length_um, step, 0.2, rng)
        steps = paths.points.shape[1]
        thin = np.exp(-paths.length / 60.0) * np.exp(0.2 * rng.standard_normal((len(start), steps)))
        radius = width_um * thin
        # The spot is only partly filled by a process thinner than the section.
        share = np.minimum(1.0, 1.5 * radius / canvas.config.section_um)
        weight = brightness[:, None] * share
        canvas.trace(
            paths.points.reshape(-1, 3),
            radius.ravel(),
            np.repeat(source, steps),
            weight.ravel(),
        )
        if generation == 1:
            break
        # Branches leave in the first half.
        which = np.tile(np.arange(len(start)), 2)
        where = rng.integers(0, (steps + 1) // 2, len(which))
        start = paths.points[which, where]
        fork = rng.uniform(0.4, 1.0, len(which)) * rng.choice([-1, 1], len(which))
        heading = paths.heading[which, where] + fork
        slope, source, brightness = slope[which], source[which], brightness[which]
        length_um, width_um = 0.5 * length_um, 0.6 * width_um


def draw_axons(canvas: Canvas, first_source: int, rng: np.random.Generator) -> int:
    """Axons with boutons, several of one neuron; the number of neurons, sources from the first."""
    config = canvas.config
    pixel = config.pixel_um
    size = np.array(canvas.shape) * pixel
    margin = config.axon_um / 2
    area = float(np.prod(size + 2 * margin))  # square micrometres
    step = STEP * pixel
    # Beyond two axons on a pixel, or one to eight, more of them only cost time and memory: they
    # blend into texture.
    most = min(3 * area / pixel**2 / (config.axon_um / step), canvas.room.size / 8)
    count = min(rng.poisson(config.axons_per_mm2 * area * 1e-6), int(most))
    if count == 0:
        return 0
    num_neurons = -(-count // AXONS_PER_NEURON)
    lows, highs = [-margin, -margin, -config.section_um], [*(size + margin), config.section_um]
    start = rng.uniform(lows, highs, (count, 3))
    slope = rng.normal(0, 0.15, count)
    heading = rng.uniform(0, 2 * np.pi, count)
    paths = grow(start, heading, slope, config.axon_um, step, config.axon_wander, rng)
    steps = paths.points.shape[1]
    bouton = rng.uniform(size=(count, steps)) < step / config.bouton_um
    swelling = config.bouton_brightness * rng.exponential(1.0, (count, steps)) / max(step, 0.7)
    # Lengths differ: each axon ends somewhere between a quarter and the whole of its path.
    reaches = paths.length < config.axon_um * rng.uniform(0.25, 1.0, (count, 1))
    weight = (1 + np.where(bouton, swelling, 0)) * reaches
    weight = weight * config.axon_brightness * np.exp(0.7 * rng.standard_normal((count, 1)))
    source = first_source + rng.integers(num_neurons, size=count)
    shown = (weight > 0).ravel()
    canvas.trace(
        paths.points.reshape(-1, 3)[shown],
        np.full(shown.sum(), 0.2),
        np.repeat(source, steps)[shown],
        weight.ravel()[shown],
    )
    return num_neurons
