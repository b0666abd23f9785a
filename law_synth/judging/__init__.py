"""What is asked of an image: a segmenter, its agreement with a mask, network features."""
