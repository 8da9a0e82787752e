"""The demonstration, `palorad demo`: the main job from end to end.

Watches the daemon from outside; the daemon never imports it.
"""
