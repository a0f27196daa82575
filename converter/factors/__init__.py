"""One linear, its moments and its rank -> factors: tensors in, tensors out."""
