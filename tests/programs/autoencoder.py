from fastdiffusion import Learner, train_autoencoder

autoencoder = train_autoencoder("digits", steps=2, width=8, batch_size=4, folder="runs/autoencoder").model
Learner("digits", net="unet-tiny", autoencoder=autoencoder, folder="runs/latent").fit(steps=2)
