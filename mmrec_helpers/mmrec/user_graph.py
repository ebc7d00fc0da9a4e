"""MMRec's ``user_graph_dict.npy``, which DualGNN and DRAGON read: for each user those with most items in common."""

import io
from pathlib import Path

import numpy as np

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.files import atomic_file
from mmrec_helpers.models.graphs import UserGraph

USER_GRAPH_FILE = "user_graph_dict.npy"


def write_user_graph(data: Interactions, folder: str | Path) -> Path:
    """Write ``user_graph_dict.npy`` into a folder and return its path.

    The file is what MMRec's preprocessing script writes: a pickled ``{user: [users, counts]}`` with lists of at most
    200 users and the training items (as floats) that each has in common with the user, most first. Equal counts go to
    the lower user number here, to any user there. The counts come from one product of sparse matrices, R Rᵀ.

    A file that is there already is left alone: InputError, unless it holds the same.

        write_user_graph(load_mmrec("data/baby"), "data/baby")
    """
    path, stored = Path(folder) / USER_GRAPH_FILE, UserGraph.of(data)
    graph = {
        user: [neighbors[counts > 0].tolist(), counts[counts > 0].astype(np.float32).tolist()]
        for user, (neighbors, counts) in enumerate(zip(stored.neighbors, stored.counts))
    }
    content = io.BytesIO()
    np.save(content, np.array(graph), allow_pickle=True)
    if path.exists() and path.read_bytes() != content.getvalue():
        raise InputError(f"{path}: there is another one already: expected none; move it away to make a new one")
    if not path.exists():
        with atomic_file(path, "wb") as file:
            file.write(content.getvalue())
    return path
