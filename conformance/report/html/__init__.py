"""The HTML report: `view` decides what it shows, `page` and `templates/` make the page."""
