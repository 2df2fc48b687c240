from fastdiffusion import evaluate

print(evaluate("runs/digits", "digits", n=64, steps=3, rounds=5, note=False))
