"""Where the epochs of GRCN and DRAGON go, and how to make them fast without changing a number."""

import os
import sys
import warnings

__version__ = "0.1.0"

# Lines of libraries that are no part of a notebook. torch-geometric imports tqdm.auto, which warns of ipywidgets that
# nothing here uses; torch's memory profiler, once it is loaded, logs every block that is older than itself.
warnings.filterwarnings("ignore", message="IProgress not found")
if "ipykernel" in sys.modules:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
