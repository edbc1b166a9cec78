"""Coverage (Table 5): PreAlign with a quarter of the table's entries, the most frequent ones."""

method = "coverage25"
init_from = "align"
align_coverage = 0.25
