"""Captioned scenes: painted places with emoji artwork in them, worded in many ways.

A `SceneGenerator` draws any number of them from an `Atlas` of artwork, by a `Recipe`; `draw` fills
a folder with them. `build_artwork` makes the atlas.
"""

from .artwork import build_artwork
from .atlas import Atlas
from .backgrounds import BackgroundBank
from .dataset import draw
from .generator import Scene, SceneGenerator
from .packing import pack_atlas, unpack_atlas
from .plan import Split
from .recipe import Recipe

__all__ = [
    "Atlas",
    "BackgroundBank",
    "Recipe",
    "Scene",
    "SceneGenerator",
    "Split",
    "build_artwork",
    "draw",
    "pack_atlas",
    "unpack_atlas",
]
