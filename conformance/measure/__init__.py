"""How far one tap is from the truth."""
