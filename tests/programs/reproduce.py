from fastdiffusion import reproduce, sample

(first, *_) = sample("runs/digits", n=2, steps=3).save("out/reproduce")
print(reproduce(first, model="runs/digits").images.shape)
