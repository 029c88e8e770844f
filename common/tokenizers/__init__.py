"""The kinds of image tokenizers: the dVAE of this project, DALL-E's, plug-ins, and the weights of `mini`.

Not here: loading one by its name (`tokenizer.py`) and training one (the tokenize stage).
"""
