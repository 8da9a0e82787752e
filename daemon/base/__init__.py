"""What every room may use and that knows none of them.

Touches what it is handed.
"""
