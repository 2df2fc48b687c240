fastdiffusion evaluate runs/digits digits -n 64 --steps 3 --rounds 5 --no-note --out out/evaluation
