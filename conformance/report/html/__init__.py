"""The HTML report: `view` works out what it shows, `page` and `templates/` make the page of it."""
