"""What one can type: a file a command."""
