"""What is right: the reference under several numerics, side by side, and the worst that legal rounding can do."""
