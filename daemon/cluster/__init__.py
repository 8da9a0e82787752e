"""Stages on a cluster: a leased child submits them to Ray, follows them, and publishes for them.

Touches Ray's network, the working directories, and what a stage publishes.
"""
