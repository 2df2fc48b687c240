fastdiffusion sample sd15 "a lighthouse at dusk" --negative "blurry" --lora style.safetensors:0.8 --steps 8
fastdiffusion sample sd15 "a cat" --image photo.png --mask mask.png
fastdiffusion fit sd15 --steps 6,8 --prompts prompts.txt
fastdiffusion doctor sd15
