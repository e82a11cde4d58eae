"""Measurements of a world: `metrics` (figures), `suites` (benchmarks), `reports` (pictures), `speed`, and the demo."""
