"""One page that shows the architecture at work on an input: values, masks, attention and choices, beside their code."""
