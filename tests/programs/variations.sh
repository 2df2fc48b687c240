fastdiffusion variations photo.png -n 2 --steps 4 --out out/variations-2
