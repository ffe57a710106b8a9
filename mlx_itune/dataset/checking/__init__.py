"""Every fault of every row: broken, repeated, leaked, out of place."""
