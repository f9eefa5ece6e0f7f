"""The embedded world: a small multi-modal data set that is rendered, not downloaded.

Twelve classes of solids stand in rooms of any color, move each in its own way and make each its own sound. Every
scene becomes seven ordinary files (picture, depth, semantic map, clip, sound, point cloud, caption) in the layout
ROOT/split/modality/class/scene, and every byte is a function of the seed and the number of the scene.
"""

from omnitrunk.engine.world.write import WorldSummary, write_world

__all__ = ["WorldSummary", "write_world"]
