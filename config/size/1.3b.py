"""
On top of config/paper.py: the paper's 1.3B model, 1.21B parameters without embeddings. Give it an --out_dir of its own.
align_weight then is 26 times the released code's, as ours multiplies a sum over layers.
"""

n_layer = 24
n_head = 16
n_embd = 2048
micro_batch_size = 16
learning_rate = 2e-4
