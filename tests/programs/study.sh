fastdiffusion study runs/digits --sweep scale=1,2 -n 1 --steps 3 --out out/study-2
