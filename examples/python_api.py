# %% [markdown]
# # Experiments from Python
#
# The cells of this file run in Jupyter, VS Code, Spyder or PyCharm (percent format), or all at once with `python`.
# `scale=smoke` makes a run take seconds and learn nothing; leave it out for a result worth reading.

# %%
import torch
from sklearn.datasets import load_digits

import runner

COMMON = ["method=supervised", "model=resnet20", "scale=smoke", "paths.runs=runs"]

# %% [markdown]
# A run takes the overrides of the command line and returns its result. The same call again, also tomorrow and from the
# command line, answers from the stored result; after an interruption it goes on where it was.

# %%
result = runner.run(COMMON)
print(result["metrics"]["accuracy"], result["folder"])

# %% [markdown]
# A small grid. Each cell is a run folder of its own, so a kernel that dies costs nothing that was finished.

# %%
for learning_rate in (0.1, 0.01):
    for seed in (0, 1):
        runner.run([*COMMON, f"recipe.optimizer.learning_rate={learning_rate}", f"seed={seed}"])

# %% [markdown]
# All finished runs as a pandas DataFrame: metrics, profile, and every setting that decides a result as `config.KEY`.

# %%
table = runner.results("runs")
summary = table.groupby("config.recipe.optimizer.learning_rate")["metrics.accuracy"].agg(["mean", "std", "count"])
print(summary)

# %% [markdown]
# The network of a run, ready to use: here on one of its test images.

# %%
network = runner.load(result["folder"])
image = torch.tensor(load_digits().images[0] * (255 / 16), dtype=torch.float32)
images = torch.nn.functional.interpolate(image.expand(1, 3, 8, 8), (32, 32), mode="bilinear", antialias=True)
mean, std = (torch.tensor(network.normalisation[name]).view(3, 1, 1) for name in ("mean", "std"))
with torch.no_grad():
    prediction = network((images.round() - mean) / std).argmax().item()
print(network.architecture["class_names"][prediction])

# %% [markdown]
# Mistakes are exceptions with one sentence. A stop (Ctrl-C, the notebook's stop button) saves the state and raises
# `runner.StopRequested`; a failure of the method raises `runner.RunFailed` with the original exception as its cause.

# %%
try:
    runner.run([*COMMON, "model=resnet21"])
except runner.UserError as error:
    message = str(error)
print(message)
