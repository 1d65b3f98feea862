"""From training table to report: the ranker and its metrics. Frames or tensors in, frames or tensors out."""
