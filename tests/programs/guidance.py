import torch

from fastdiffusion import guidance, load, noise, samplers, schedules

model = load("runs/digits")
guided = guidance.cfg(model.denoise, scale=2.0, interval=(0.1, 5.0))
table = samplers.table("dpmpp_2m", schedules.karras(5, model.sigma_min, model.sigma_max))
x = table.sigmas[0] * noise.initial(seeds=range(4), shape=model.shape)
with torch.no_grad():
    *_, last = samplers.run(guided, x, table, model.cond([0, 1, 2, 3]))
print(last.x.shape)
