"""What runs in processes of their own: LLaMA-Factory's parser, the guard of a training, and what replaces parts of
LLaMA-Factory in a launched training. `python -m helpers.process.NAME` starts each."""
