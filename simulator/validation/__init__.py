"""How right peakline is: predictions beside everything measured that is at hand.

`peakline validate` runs every comparison and writes `docs/validation.md`. Measured tables are read where they lie
and never copied; a comparison whose source is absent says so.
"""
