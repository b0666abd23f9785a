"""LAW: learned loss weighting for mask-conditioned diffusion. Announced; commands come in a later version."""
