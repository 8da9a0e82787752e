"""The long-running process: decides when what is done.

May use every other room but the command line.
"""
