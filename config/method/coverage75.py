"""Coverage (Table 5): PreAlign with three quarters of the table's entries, the most frequent ones."""

method = "coverage75"
init_from = "align"
align_coverage = 0.75
