fastdiffusion sample "a red heart" -n 2 --steps 4 --negative-prompt "blue" --scale 3 --out out/hearts-2
fastdiffusion sample runs/digits -n 4 --steps 3 --classes 3,7 --out out/threes
