"""Line searches: how far to go along a direction, told from numbers alone."""
