"""Leased child processes: started, watched, ended.

Touches processes and their work folders.
"""
