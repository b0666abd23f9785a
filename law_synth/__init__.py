"""LAW: learned loss weighting for mask-conditioned diffusion. Announced; its commands come with a later version."""
