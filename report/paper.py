"""The paper's numbers (arXiv 2407.16222v3), to stand beside ours; nothing of ours is here."""


def _table_6(joint: str, prealign: str) -> dict[str, dict[str, float]]:
    """Rows of Table 6, whose columns are in the paper's order."""
    columns = [f"ppl {l}" for l in ("en", "zh", "de", "ar", "ru")] + [f"NLI {l}" for l in ("en", "zh", "de", "ar", "ru")] + [f"CLKA {l}" for l in ("zh", "de", "ar", "ru")]
    return {method: dict(zip(columns, map(float, row.split()), strict=True)) for method, row in (("joint", joint), ("prealign", prealign))}


# The paper's numbers (tables 1 to 5: 150M parameters, 10B English and 0.1B En-Clone tokens), by our names of methods and columns.
PAPER: dict[str, dict[str, dict[str, float]]] = {
    "Table 1": {
        "only_target": {"ppl clone": 47.2},
        "joint": {"ppl en": 16.1, "ppl clone": 21.6, "NLI en": 79.8, "NLI clone": 74.9, "CLKA clone": 27.7},
        "prealign": {"ppl en": 15.9, "ppl clone": 16.5, "NLI en": 80.1, "NLI clone": 79.3, "CLKA clone": 90.3},
        "full_target": {"ppl clone": 16.2},
    },
    "Table 2": {
        "on_the_fly": {"ppl clone": 22.1, "NLI clone": 74.3, "CLKA clone": 26.5},
        "post": {"ppl clone": 19.7, "NLI clone": 75.5, "CLKA clone": 28.4},
        "prealign": {"ppl clone": 16.5, "NLI clone": 79.3, "CLKA clone": 90.3},
    },
    "Table 3": {
        "joint": {"ppl clone": 21.6, "NLI clone": 74.9, "CLKA clone": 26.5},
        "codeswitch_only": {"ppl clone": 19.7, "NLI clone": 76.1, "CLKA clone": 30.2},
        "init_only": {"ppl clone": 17.1, "NLI clone": 77.8, "CLKA clone": 85.7},
        "prealign": {"ppl clone": 16.5, "NLI clone": 79.3, "CLKA clone": 90.3},
    },
    "Table 4": {
        "vanilla_codeswitch": {"ppl clone": 17.1, "mixed clone": 4.17},
        "prealign": {"ppl clone": 16.5, "mixed clone": 0.02},
    },
    "Table 5": {
        "coverage25": {"ppl clone": 17.0, "NLI clone": 78.2, "CLKA clone": 80.2},
        "coverage50": {"ppl clone": 16.8, "NLI clone": 78.6, "CLKA clone": 83.1},
        "coverage75": {"ppl clone": 16.6, "NLI clone": 78.8, "CLKA clone": 88.4},
        "prealign": {"ppl clone": 16.5, "NLI clone": 79.3, "CLKA clone": 90.3},
    },
    "Table 6, 150M": _table_6("25.7 99.7 43.5 46.9 49.8  80.6 64.6 63.5 58.3 62.0  26.2 25.1 26.8 26.3",
                              "25.4 91.1 39.8 40.7 44.6  80.6 69.2 67.5 60.8 65.1  45.7 48.2 43.4 46.0"),
    "Table 6, 400M": _table_6("20.3 79.8 32.5 34.8 39.6  82.3 65.8 65.3 56.9 63.7  37.8 39.5 36.1 37.7",
                              "19.9 75.2 28.3 30.7 33.6  82.4 70.0 69.3 65.6 68.2  63.8 66.5 64.7 63.6"),
    "Table 6, 1.3B": _table_6("15.8 62.2 24.0 27.7 31.2  84.3 70.8 70.6 63.7 68.6  49.6 44.1 45.5 48.0",
                              "16.1 58.0 23.3 25.3 29.4  83.9 74.0 72.9 68.2 71.4  71.1 73.9 72.7 72.5"),
}


SIZES = {"150M": 150e6, "400M": 400e6, "1.3B": 1.3e9}  # parameters without embeddings
