from fastdiffusion import fit, load, sample

model = load("sd15", lora="style.safetensors:0.8", precision="bf16")
sample(model, "a lighthouse at dusk", negative_prompt="blurry", steps=8).save("out/lighthouse")
sample(fit(model, steps=6, prompts="prompts.txt"), "a lighthouse at dusk", steps=6)
