"""Reproduction of the papers' tables and figures: published numbers > study or analysis > outcome > page."""
