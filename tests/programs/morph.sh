fastdiffusion morph emoji "a red heart" "a blue heart" --steps 4 --out out/morph.mp4
