fastdiffusion export runs/digits --name Digits --license apache-2.0 -n 4 --steps 3 --out out/export-2
