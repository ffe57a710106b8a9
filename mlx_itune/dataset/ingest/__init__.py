"""Documents of any kind -> passages: pieces of text with the place that they are from."""
