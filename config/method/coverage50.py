"""Coverage (Table 5): PreAlign with half of the table's entries, the most frequent ones."""

method = "coverage50"
init_from = "align"
align_coverage = 0.5
