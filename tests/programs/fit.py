from fastdiffusion import load, sample
from fastdiffusion.fitting import fit_sampler

model = load("runs/digits")
table = fit_sampler(model, steps=3, noises=8, evaluations=2000)
print(table, table.info["error"])
sample(model.with_table(3, table), n=2, steps=3)
