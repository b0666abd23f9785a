"""LAW: learned loss weighting for mask-conditioned diffusion (arXiv:2603.04795)."""
