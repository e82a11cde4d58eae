"""Figures of merit and their uncertainty: plain functions of arrays, without a world or a file."""
