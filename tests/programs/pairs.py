from fastdiffusion import Learner, data

pairs = data.Pairs("blurred", "photos", 16)
Learner(pairs, net="unet-tiny", folder="runs/pairs", batch_size=4).fit(steps=2)
