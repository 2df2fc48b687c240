from fastdiffusion import finetune

finetune("emoji", "photos", retain=50, steps=2)
