"""The same house as a page on this machine: every page is a reader of folders and of commands."""
