"""What is asked: the inputs, and what a peer has to show for each."""
