"""English to En-Clone on a laptop: minutes, no GPU, no download."""

data_dir = "data/demo"
out_dir = "out/demo"
