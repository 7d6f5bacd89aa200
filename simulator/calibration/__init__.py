"""Calibration: a handful of physical constants per device, fitted on measured kernels, and what they leave unexplained.

    import peakline as pk

    fitted = pk.calibrate("h100-sxm", "aiconfigurator")
    fitted.table                                  # constants and residuals
    fitted.write("my-h100.yaml")                  # a device file that carries them
    pk.estimate(step, fitted.device).time_interval

The cost model reads the constants from the device; estimates get their intervals from the residuals.
"""
