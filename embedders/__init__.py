"""Language models to vectors and scores: one paper, one file. Frames or tensors in, frames or tensors out."""
