"""Sweeps: a file names methods, parameters, recipes and tasks; workers judge every point; a database keeps them.

file > plan > schedule > pool of workers > store > table
"""
