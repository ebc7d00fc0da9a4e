"""Where the epochs of GRCN and DRAGON go, and how to make them fast without changing a number."""

__version__ = "0.1.0"

import warnings

# torch-geometric imports tqdm.auto, which warns in notebooks of ipywidgets that nothing here uses.
warnings.filterwarnings("ignore", message="IProgress not found")
