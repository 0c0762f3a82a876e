"""Pictures and text as the model is given them."""
