"""The worlds by the names that recipes call them."""

from pitlm.worlds import house_style, pocket
from pitlm.worlds.world import World

KNOWN: dict[str, World] = {"pocket": pocket.WORLD, "house-style": house_style.WORLD}
