"""What can be typed behind `python -m t5g2ref`."""
