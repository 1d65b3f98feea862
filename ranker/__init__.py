"""From training table to report: the ranker, its metrics and the report. Frames or tensors in, frames or tensors out."""
