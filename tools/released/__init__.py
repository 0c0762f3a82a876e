"""What `tools/releases.py` judges, in which environments, what it keeps, and the page that it makes."""
