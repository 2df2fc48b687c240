"""Why an image looks as it does: which words made which pixels."""
