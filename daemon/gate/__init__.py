"""Asks a candidate the suites beside base and live and has the answers judged.

Touches servers and work folders; what a verdict is, `policies.gate` decides.
"""
