"""How fast is this experiment on each device here, beside a bare loop of the same model?"""
