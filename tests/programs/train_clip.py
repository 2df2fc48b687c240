from fastdiffusion import ImageFolder, train_clip

train_clip(ImageFolder("photos", size=32, aspect="pad"), steps=2, net="tiny", batch_size=4, folder="runs/clip")
