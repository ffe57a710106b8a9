"""What a data set looks like, as self-contained HTML pages."""
