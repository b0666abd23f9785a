"""`nnunet-order distill`: a raw data set of labelled and unlabelled images with a teacher's soft labels."""
