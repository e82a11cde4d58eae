"""Recipes that make weights: one flat loop each."""
