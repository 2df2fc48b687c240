from fastdiffusion import study

study("runs/digits", ["scale=1,2"], n=1, steps=3).save("out/study")
