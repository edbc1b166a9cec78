"""
On top of config/paper.py: the paper's 400M model, 393M parameters without embeddings. Give it an --out_dir of its own.
align_weight then is 22 times the released code's, as ours multiplies a sum over layers.
"""

n_layer = 20
n_head = 20
n_embd = 1280
learning_rate = 4e-4
