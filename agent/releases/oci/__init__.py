"""OCI images from a directory: found by digest, checked to the last blob, laid over each other."""
