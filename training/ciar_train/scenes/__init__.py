"""Captioned scenes: pictures painted from artwork and procedural places, worded in many ways."""

from .atlas import Atlas, unpack_atlas
from .dataset import draw
from .generator import BackgroundBank, Scene, SceneGenerator, Split
from .recipe import Recipe, RecipeError

__all__ = [
    "Atlas",
    "BackgroundBank",
    "Recipe",
    "RecipeError",
    "Scene",
    "SceneGenerator",
    "Split",
    "draw",
    "unpack_atlas",
]
