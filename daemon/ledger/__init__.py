"""Everything that is durably true, in one SQLite file.

Touches that file and nothing else.
"""
