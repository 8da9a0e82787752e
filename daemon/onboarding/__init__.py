"""The first day: looks at model and server, asks what the model knows, writes data and settings.

Touches the model's files, the server, and the folder that `palorad init` is given.
"""
