"""A checkout as MMRec's is laid out, small, with stand-ins written for these tests: configuration, data set, loader,
and models that ask for what old code asks for."""

import textwrap

import numpy as np

from mmrec_helpers.data import Interactions
from tests.models_data import small_data

FILES = {
    "configs/overall.yaml": """
        data_path: '../data/'
        train_batch_size: 2048
        learning_rate: 0.001
        is_multimodal_model: True
        hyper_parameters: ["seed"]
        seed: [999]
        epochs: 2
        eval_batch_size: 100
        valid_metric: Recall@20
        metrics: ["Recall", "NDCG"]
        topk: [10, 20]
        """,
    "configs/model/GRCN.yaml": "n_layers: 3\nreg_weight: [0.1, 0.01]\nhyper_parameters: ['reg_weight']\n",
    "configs/model/DRAGON.yaml": "n_layers: 2\nn_mm_layers: 1\naggr_mode: ['add']\nhyper_parameters: ['aggr_mode']\n",
    "configs/model/BPR.yaml": "reg_weight: [0.1]\nhyper_parameters: ['reg_weight', 'seed']\n",
    "configs/model/ItemKNN.yaml": "req_training: False\n",
    "utils/configurator.py": """
        import os
        import yaml

        class Config:
            def __init__(self, model, dataset, config_dict=None, mg=False):
                self.final_config_dict = {}
                hyper = []
                for name in ("overall", f"dataset/{dataset}", f"model/{model}"):
                    path = os.path.join(os.getcwd(), "configs", name + ".yaml")
                    if os.path.isfile(path):
                        with open(path) as file:
                            found = yaml.safe_load(file)
                        hyper += found.get("hyper_parameters") or []
                        self.final_config_dict.update(found)
                self.final_config_dict.update(config_dict, model=model, dataset=dataset, hyper_parameters=hyper)

            def __getitem__(self, name):
                return self.final_config_dict.get(name)

            def __setitem__(self, name, value):
                self.final_config_dict[name] = value
        """,
    "utils/dataset.py": """
        import lmdb
        import pandas as pd

        class RecDataset:
            def __init__(self, config, df=None):
                self.config, self.uid_field, self.iid_field = config, "userID", "itemID"
                if df is None:
                    folder = config["data_path"] + config["dataset"] + "/"
                    df = pd.read_csv(folder + config["inter_file_name"], sep="\\t")
                    self.user_num, self.item_num = (int(df[name].max()) + 1 for name in ("userID", "itemID"))
                self.df = df

            def split(self):
                parts = [RecDataset(self.config, self.df[self.df["x_label"] == label]) for label in range(3)]
                for part in parts:
                    part.user_num, part.item_num = self.user_num, self.item_num
                return parts

            def __str__(self):
                self.inter_num = len(self.df)
                return str(self.inter_num)

            def get_user_num(self):
                return self.user_num

            def get_item_num(self):
                return self.item_num
        """,
    "utils/dataloader.py": """
        import numpy as np
        import torch
        from scipy.sparse import coo_matrix

        class TrainDataLoader:
            def __init__(self, config, dataset, batch_size=1, shuffle=False):
                self.dataset, self.step, self.pr, self.device = dataset, batch_size, 0, config["device"]
                self.sparsity = dataset.inter_num / dataset.user_num

            def pretrain_setup(self):
                self.pr = 0

            def inter_matrix(self, form="coo"):
                pairs = self.dataset.df[["userID", "itemID"]].to_numpy().T
                shape = (self.dataset.user_num, self.dataset.item_num)
                return coo_matrix((np.ones(pairs.shape[1]), tuple(pairs)), shape=shape).asformat(form)

            def __len__(self):
                return -(-len(self.dataset.df) // self.step)

            def __iter__(self):
                self.dataset.df = self.dataset.df.sample(frac=1)
                return self

            def __next__(self):
                rows = self.dataset.df[self.pr : self.pr + self.step]
                self.pr += self.step
                if not len(rows):
                    raise StopIteration
                negatives = np.random.randint(self.dataset.item_num, size=len(rows))
                users, items = rows[["userID", "itemID"]].to_numpy().T
                return torch.from_numpy(np.stack((users, items, negatives))).to(self.device)

        class EvalDataLoader:
            def __init__(self, config, dataset, additional_dataset=None, batch_size=1):
                self.users, self.batch_size = dataset.df["userID"].unique(), batch_size
                items, train = (data.df.groupby("userID")["itemID"] for data in (dataset, additional_dataset))
                self.items = [items.get_group(user).to_numpy() for user in self.users]
                self.masked = [train.get_group(user).to_numpy() for user in self.users]

            def get_eval_users(self):
                return torch.from_numpy(self.users)

            def get_eval_items(self):
                return self.items

            def __iter__(self):
                for at in range(0, len(self.users), self.batch_size):
                    masked = self.masked[at : at + self.batch_size]
                    rows = np.repeat(np.arange(len(masked)), [len(items) for items in masked])
                    users = torch.from_numpy(self.users[at : at + self.batch_size])
                    yield users, torch.from_numpy(np.stack((rows, np.concatenate(masked))))
        """,
    "utils/logger.py": """
        import logging
        import os

        def init_logger(config):
            os.makedirs("log")
            file = logging.FileHandler(os.path.join("log", f"{config['model']}-{config['dataset']}.log"), "w", "utf-8")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%a %d %b %Y %H:%M:%S"))
            logging.basicConfig(level=logging.INFO, handlers=[file])
        """,
    "common/trainer.py": """
        import math
        import time
        from logging import getLogger
        import numpy as np
        import torch

        class Evaluator:
            def evaluate(self, top, data):
                top = torch.cat(top).numpy()
                hits = [np.isin(ranked[:20], items).sum() / len(items) for ranked, items in zip(top, data.items)]
                return {"recall@20": round(float(np.mean(hits)), 4)}

        class Trainer:
            def __init__(self, config, model):
                self.config, self.model, self.evaluator, self.cur_step = config, model, Evaluator(), 0
                self.train_loss_dict, self.best = {}, -1
                self.optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])

            def evaluate(self, data):
                self.model.eval()
                top = []
                for users, masked in data:
                    scores = self.model.full_sort_predict([users]).detach().clone()
                    scores[masked[0], masked[1]] = -1e10
                    top.append(scores.topk(max(self.config["topk"])).indices)
                return self.evaluator.evaluate(top, data)

            def fit(self, batches, valid_data, test_data, saved):
                say, results = getLogger().info, (None, None)
                for epoch in range(self.config["epochs"]):
                    began, total = time.time(), 0.0
                    self.model.pre_epoch_processing()
                    self.model.train()
                    batches.pr = 0
                    for at, batch in enumerate(batches):
                        self.optimizer.zero_grad()
                        loss = self.model.calculate_loss(batch).sum()
                        if math.isnan(loss.item()):
                            say(f"Loss is nan at epoch: {epoch}, batch index: {at}. Exiting.")
                            return self.best, *results
                        loss.backward()
                        self.optimizer.step()
                        total += loss.item()
                    self.train_loss_dict[epoch] = total
                    say(f"epoch {epoch} training [time: {time.time() - began:.2f}s, train loss: {total:.4f}]")
                    valid = self.evaluate(valid_data)
                    better = valid["recall@20"] > self.best
                    self.cur_step = 0 if better else self.cur_step + 1
                    test = self.evaluate(test_data)
                    say(f"epoch {epoch} evaluating [time: 0.01s, valid_score: {valid['recall@20']:f}]")
                    say(f"valid result: \\nrecall@20: {valid['recall@20']:.04f}    ")
                    say(f"test result: \\nrecall@20: {test['recall@20']:.04f}    ")
                    if better:
                        say(f"██ {self.config['model']}--Best validation results updated!!!")
                        self.best, results = valid["recall@20"], (valid, test)
                return self.best, *results
        """,
    "utils/utils.py": """
        import importlib
        import random
        import numpy as np
        import torch

        def init_seed(seed):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)

        def get_model(name):
            return getattr(importlib.import_module("models." + name.lower()), name)

        def get_trainer():
            return importlib.import_module("common.trainer").Trainer
        """,
    "common/base.py": """
        import os
        import numpy as np
        from torch import nn
        from mmrec_helpers.data import Interactions

        class Recommender(nn.Module):
            def pre_epoch_processing(self):
                pass

        def interactions(config, loader):
            matrix = loader.inter_matrix(form="coo")
            folder = config["data_path"] + config["dataset"]
            files = {"visual": config["vision_feature_file"], "textual": config["text_feature_file"]}
            features = {m: np.load(os.path.join(folder, f)) for m, f in files.items()}
            users, items = loader.dataset.get_user_num(), loader.dataset.get_item_num()
            assert config["not there"] is None
            return Interactions.from_arrays(users, items, train=np.stack((matrix.row, matrix.col)), features=features)
        """,
    "models/bpr.py": """
        import torch
        from torch import nn
        from common.base import Recommender

        class BPR(Recommender):
            def __init__(self, config, loader):
                super().__init__()
                sizes = loader.dataset.get_user_num(), loader.dataset.get_item_num()
                self.users, self.items = (nn.Parameter(0.1 * torch.randn(size, 8)) for size in sizes)

            def calculate_loss(self, batch):
                users, items = self.users[batch[0]], self.items[batch[1]] - self.items[batch[2]]
                return -(users * items).sum(dim=1).sigmoid().log().mean()

            def full_sort_predict(self, interaction):
                return self.users[interaction[0]] @ self.items.t()
        """,
    "models/grcn.py": """
        from common.base import interactions
        from tests import mmrec_objects

        class GRCN(mmrec_objects.GRCN):
            def __init__(self, config, dataset):
                super().__init__(interactions(config, dataset), n_layers=config["n_layers"], calls_cuda=True)
                self.reg_weight = config["reg_weight"]

            def calculate_loss(self, batch):
                return super().calculate_loss(batch)
        """,
    "models/dragon.py": """
        import os
        import numpy as np
        from common.base import interactions
        from tests import mmrec_objects

        class DRAGON(mmrec_objects.DRAGON):
            def __init__(self, config, dataset):
                super().__init__(interactions(config, dataset), n_layers=config["n_mm_layers"])
                path = os.path.join(config["data_path"] + config["dataset"], config["user_graph_dict_file"])
                self.user_graph_dict = np.load(path, allow_pickle=True).item()
                assert config["aggr_mode"] == "add"
        """,
    "models/old.py": """
        import numpy as np
        import torch
        import torchvision.transforms as transforms
        from scipy.sparse import dok_matrix
        from torch import nn
        from torch_scatter import scatter_add
        from models.common.base import Recommender

        class Old(Recommender):
            def __init__(self, config, loader):
                super().__init__()
                matrix = dok_matrix((3, 3), dtype=np.float32)
                matrix._update({(0, 1): 2.0})
                self.entries = matrix.tocoo().row.astype(np.int)
                self.hidden = nn.Parameter(torch.ones(3)).to(config["device"])
                self.weight = nn.Parameter(torch.ones(3))
                open("left.txt", "w").close()

            def calculate_loss(self, batch):
                index = torch.tensor([0, 0, 2]).cuda()
                return scatter_add(self.weight * self.hidden, index, dim=0, dim_size=3).square().sum()
        """,
    "models/broken.py": """
        import torchvision.transforms as transforms

        class Broken:
            def __init__(self, config, loader):
                self.pipeline = transforms.Compose([])
        """,
    "models/itemknn.py": """
        from common.base import Recommender

        class ItemKNN(Recommender):
            def __init__(self, config, loader):
                super().__init__()
        """,
}


def laid_out_data(modalities=("visual", "textual")):
    """``small_data`` with an interaction of its last user and item, so that a folder can hold it."""
    data = small_data(modalities)
    return Interactions.from_arrays(
        50, 24, data.train, valid=np.array([[49], [23]]), features=data.features, name="toys"
    )


def make_checkout(folder):
    """Write the checkout under ``folder`` and return its root."""
    for name, text in FILES.items():
        file = folder / "MMRec" / "src" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return folder / "MMRec"
