"""Post-training quantization: arrays, scales, methods. One method a file, found by its name."""
