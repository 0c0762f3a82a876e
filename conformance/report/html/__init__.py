"""What the HTML report shows, worked out from the document; `html.py` and `templates/` make the page of it."""
