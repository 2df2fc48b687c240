from fastdiffusion import variations

variations("photo.png", n=2, steps=4).save("out/variations")
