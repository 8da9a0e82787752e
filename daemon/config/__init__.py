"""config.toml, the environment, and where everything durable lies.

Reads files; changes none.
"""
