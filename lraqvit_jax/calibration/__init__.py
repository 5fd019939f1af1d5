"""What the layers see on calibration images."""
