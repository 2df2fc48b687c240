from fastdiffusion import export

export("runs/digits", "out/export", name="Digits", license="apache-2.0", n=4, steps=3)
