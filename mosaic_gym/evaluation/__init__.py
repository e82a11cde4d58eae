"""Metrics, the revisit benchmark, the speed benchmark, reports."""
