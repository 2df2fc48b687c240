from fastdiffusion import explain, sample

(path, *_) = sample("emoji", "a red heart", n=1, steps=4).save("out/explain")
explain(path).save("out/explained")
