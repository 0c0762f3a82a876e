"""What one can type: each command in a file of its own."""
