fastdiffusion sample emoji "a blue heart" --image photo.png --strength 0.6 -n 1 --steps 4 --out out/from-photo-2
