"""Replicas, their adapters, and the alias in front of them.

Touches servers over HTTP and the pointer file.
"""
