fastdiffusion fit runs/digits-fit --steps 3 --noises 8 --evaluations 2000
