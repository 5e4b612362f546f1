"""Comparisons: several methods side by side on several tasks, for the question which one to take.

A module of this package is one comparison: its docstring says the question, and its ``COMPARISON`` holds rows (the tasks),
arms (the methods) and ``measure(lab, row, arm)``. ``assay compare NAME`` runs and records it (:mod:`assay.lab.comparing`).
"""
