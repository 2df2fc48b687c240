from fastdiffusion import sample, train_classifier
from fastdiffusion.guidance import classifier

net = train_classifier("digits", steps=2, batch_size=4).model
sample("runs/digits", n=2, steps=3, guidance=lambda denoise: classifier(denoise, net.log_prob, scale=2.0))
