"""Raw sources -> a data folder with splits, its description and a ledger of what was done."""
