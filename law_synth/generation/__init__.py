"""`law-synth generate`: synthetic cases of a trained run, as an nnU-Net raw data set."""
