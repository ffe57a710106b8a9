"""A base model: found, vetted, loaded, fingerprinted."""
