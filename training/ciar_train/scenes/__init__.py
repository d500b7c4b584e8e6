"""Captioned scenes: painted places with emoji artwork in them, worded in many ways.

A `SceneGenerator` draws any number of them from an `Atlas` of artwork, by a `Recipe`; `draw` fills
a folder with them. `build_artwork` makes the atlas.
"""

from ciar_train.scenes.artwork import build_artwork
from ciar_train.scenes.atlas import Atlas
from ciar_train.scenes.backgrounds import BackgroundBank
from ciar_train.scenes.dataset import draw
from ciar_train.scenes.generator import Scene, SceneGenerator
from ciar_train.scenes.packing import pack_atlas, unpack_atlas
from ciar_train.scenes.plan import Split
from ciar_train.scenes.recipe import Recipe

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
