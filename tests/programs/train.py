from fastdiffusion import Learner, sample

learner = Learner("digits", net="unet-tiny", folder="runs/digits").fit(steps=3)
sample(learner.model, n=4, steps=3).save("out/digits")
