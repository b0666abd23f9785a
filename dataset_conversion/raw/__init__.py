"""nnU-Net's raw data sets: reading and checking, writing, folds."""
