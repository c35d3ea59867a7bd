"""The jobs of `diffmatch demo`, one a file.

A job is a function `run(report, settings)` that adds a section to the report, writes its files and returns its key
figures.
"""
