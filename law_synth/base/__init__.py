"""Base models: loading any Stable-Diffusion-1.x-like one, and making a small one (`law-synth init-base`)."""
