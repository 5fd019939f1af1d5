"""The grid of activations, from calibration inputs. One method a file."""
