fastdiffusion personalize emoji photos --token "<dog>" --steps 2
fastdiffusion sample emoji "<dog> with sunglasses" --lora runs/photos/lora.safetensors -n 1 --steps 4
