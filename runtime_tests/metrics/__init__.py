"""What is measured of one artifact, other than time and text."""
