from fastdiffusion import train_cold

train_cold("digits", process="blur 2", steps=2, batch_size=4, folder="runs/cold")
