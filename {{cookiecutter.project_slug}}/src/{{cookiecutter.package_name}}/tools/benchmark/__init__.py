"""How fast is this experiment on each device here, compared with a bare loop of the same model?"""
