import os

# An operator that MPS lacks runs on the CPU, with a warning, in place of an error. PyTorch reads
# this when it loads, so it stands here, before anything can import torch. Set it to 0 to opt out.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
